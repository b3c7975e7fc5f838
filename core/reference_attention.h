// Attention in double by plain loops: the oracle that every kernel is held
// against, and docs/numerics.md as code. Not fast, on purpose.
#ifndef ATTND_CORE_REFERENCE_ATTENTION_H_
#define ATTND_CORE_REFERENCE_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "core/attention_problem.h"

namespace attnd {

// One key that a row sees.
struct ReferenceKey {
  int64_t index = 0;  // counts from the entry's first key
  double dot = 0;     // (scale / temperature) * dot(query, key)
  double score = 0;   // after soft cap, ALiBi and bias
  double weight = 0;  // exp(score) / (exp(sink) + the sum of exp(score))
  // What rounding errors are proportional to: the sum of the |addends| of
  // `dot`, and |ALiBi term| + |bias|.
  double dot_magnitude = 0;
  double added_magnitude = 0;
};

// One row of the softmax.
struct ReferenceRow {
  std::vector<ReferenceKey> keys;  // none where no score is above -inf
  double lse = 0;                  // the sink included
};

// Row `q_row` of `head` of batch entry `entry`, both counted within the entry.
// Follows the formula at AttentionOptions in the contract.
ReferenceRow ReferenceWeights(const AttentionProblem& problem,
                              const AttentionBuffers& inputs, int64_t entry,
                              int64_t head, int64_t q_row);

// The mean of the values by the weights of `row`: output [v_head_dim].
void ReferenceOutput(const AttentionProblem& problem,
                     const AttentionBuffers& inputs, int64_t entry,
                     int64_t head, const ReferenceRow& row, double* output);

// Both: one row of the answer.
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
