// Attention in double by plain loops: the oracle that every kernel is held
// against, and the definition of what attnd computes. Not fast, on purpose.
#ifndef ATTND_CORE_REFERENCE_ATTENTION_H_
#define ATTND_CORE_REFERENCE_ATTENTION_H_

#include <cstdint>

#include "core/attention_problem.h"

namespace attnd {

// One row of the answer: output [v_head_dim] and lse, of query row `q_row` of
// `head` of batch entry `batch`. Follows the formula at AttentionOptions in
// the contract. Allocates kv_len doubles.
void ReferenceAttentionRow(const AttentionProblem& problem, const float* query,
                           const float* key, const float* value, int64_t batch,
                           int64_t head, int64_t q_row, double* output,
                           double* lse);

// Every row: output [batch, num_q_heads, q_len, v_head_dim] and lse
// [batch, num_q_heads, q_len], both dense.
void ReferenceAttention(const AttentionProblem& problem, const float* query,
                        const float* key, const float* value, double* output,
                        double* lse);

}  // namespace attnd

#endif  // ATTND_CORE_REFERENCE_ATTENTION_H_
