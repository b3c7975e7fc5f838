// The one place where an attention call is checked. Knows shapes and options,
// never bytes: a problem is known good before a single element is received.
#ifndef ATTND_CORE_ATTENTION_PROBLEM_H_
#define ATTND_CORE_ATTENTION_PROBLEM_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "core/attention_params.h"
#include "core/mask.h"
#include "core/tensor_view.h"

namespace attnd {

// A tensor as its sender describes it: rank 4, 3 or 2, dense and row-major.
struct TensorSpec {
  DataType dtype = DataType::kF32;
  std::vector<int64_t> shape;
};

// A checked problem. Whoever holds one may compute with it and need not look
// at it again. Immutable and cheap to copy; safe to share between threads.
//
//   auto problem = AttentionProblem::Create({.shape = {8, 128, 64}},
//                                           {.shape = {2, 512, 64}},
//                                           {.shape = {2, 512, 64}}, {});
class AttentionProblem {
 public:
  // The largest head_dim and v_head_dim; one row of tiles has to fit caches.
  static constexpr int64_t kMaxHeadDim = 1024;

  // The most bytes of one tensor, and the most scalar steps of a problem. Far
  // enough below overflow that sums of a problem's bytes, strides, pairs and
  // flops need no further check; what is padded to tiles does.
  static constexpr int64_t kMaxTensorBytes = int64_t{1} << 60;
  static constexpr int64_t kMaxWork = int64_t{1} << 62;

  // Shapes are BHSD: query [batch, num_q_heads, q_len, head_dim], key
  // [batch, num_kv_heads, kv_len, head_dim], value [batch, num_kv_heads,
  // kv_len, v_head_dim]; rank 3 lacks batch, rank 2 batch and heads.
  // INVALID_ARGUMENT that names the field where anything does not fit, with
  // reason INT64_RANGE where only the size is at fault.
  static absl::StatusOr<AttentionProblem> Create(
      const TensorSpec& query, const TensorSpec& key, const TensorSpec& value,
      const AttentionOptions& options);

  const AttentionParams& params() const { return params_; }
  const Mask& mask() const { return mask_; }

  // The shapes of the answers, in the rank that the query came in.
  std::vector<int64_t> OutputShape() const;  // query's with v_head_dim last
  std::vector<int64_t> LseShape() const;     // query's without head_dim

  // Views of dense memory in this problem's shapes, as many elements as they
  // say. `data` may be null only where a shape holds no element.
  TensorView<const float> QueryView(const float* data) const;
  TensorView<const float> KeyView(const float* data) const;
  TensorView<const float> ValueView(const float* data) const;
  TensorView<float> OutputView(float* data) const;
  TensorView<float> LseView(float* data) const;  // dim axis of extent 1

  int64_t query_bytes() const;
  int64_t key_bytes() const;
  int64_t value_bytes() const;
  int64_t output_bytes() const;
  int64_t lse_bytes() const;  // whether asked for or not

 private:
  AttentionProblem(const AttentionParams& params, int rank)
      : params_(params), mask_(params), rank_(rank) {}

  AttentionParams params_;
  Mask mask_;
  int rank_;
};

}  // namespace attnd

#endif  // ATTND_CORE_ATTENTION_PROBLEM_H_
