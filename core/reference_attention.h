// Attention in double by plain loops: the oracle that every kernel is held
// against, and the definition of what attnd computes. Not fast, on purpose.
#ifndef ATTND_CORE_REFERENCE_ATTENTION_H_
#define ATTND_CORE_REFERENCE_ATTENTION_H_

#include <cstdint>

#include "core/attention_problem.h"

namespace attnd {

// One row of the answer: output [v_head_dim] and lse, of row `q_row` of `head`
// of batch entry `entry`. Follows the formula at AttentionOptions in the
// contract. Allocates two doubles a key.
void ReferenceAttentionRow(const AttentionProblem& problem,
                           const AttentionBuffers& inputs, int64_t entry,
                           int64_t head, int64_t q_row, double* output,
                           double* lse);

// Every row: output in the problem's output shape and lse in its lse shape,
// both dense.
void ReferenceAttention(const AttentionProblem& problem,
                        const AttentionBuffers& inputs, double* output,
                        double* lse);

// The gradients by the definition, for a loss whose gradient with respect to
// the output is `grad_output` (f32, the output's shape): dense arrays of the
// shapes of query, key and value, which are overwritten. `output` and `lse` of
// `inputs` are not read: they are computed anew.
void ReferenceBackward(const AttentionProblem& problem,
                       const BackwardBuffers& inputs, double* grad_query,
                       double* grad_key, double* grad_value);

// Element `index` of an array of `type`.
double ReferenceElement(const void* data, DataType type, int64_t index);

}  // namespace attnd

#endif  // ATTND_CORE_REFERENCE_ATTENTION_H_
