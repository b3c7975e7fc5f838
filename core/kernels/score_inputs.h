// The bias and the mask, the two tensors that change scores. The kernels of the
// forward and of the backward pass use this.
#ifndef ATTND_CORE_KERNELS_SCORE_INPUTS_H_
#define ATTND_CORE_KERNELS_SCORE_INPUTS_H_

#include <cstddef>

#include "core/attention_problem.h"
#include "core/tensor_view.h"

namespace attnd {

// Owns nothing: the problem and the elements of both tensors must outlive it.
// The view of a tensor that the problem lacks has null `data`.
struct ScoreInputs {
  ScoreInputs(const AttentionProblem& of_problem, const void* bias_data,
              const void* mask_data)
      : problem(of_problem) {
    const AttentionParams& params = problem.params();
    if (params.has_bias) {
      bias = problem.BiasView(static_cast<const std::byte*>(bias_data));
    }
    if (params.has_mask) {
      mask = problem.MaskView(static_cast<const std::byte*>(mask_data));
    }
  }

  const AttentionProblem& problem;
  TensorView<const std::byte> bias;  // [batch, num_q_heads, q_len, kv_len],
  TensorView<const std::byte> mask;  // each broadcast
};

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_SCORE_INPUTS_H_
