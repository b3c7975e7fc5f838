// Attention in double by plain loops. Tests compare every kernel with it, so it
// favours clarity over speed and follows docs/numerics.md line by line.
//
// All functions take dense inputs of the types and shapes of `problem`, count
// query rows and keys from the first of their batch entry, and are thread-safe.
#ifndef ATTND_CORE_REFERENCE_ATTENTION_H_
#define ATTND_CORE_REFERENCE_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "core/attention_problem.h"

namespace attnd {

// A key that a query row sees, with the score and the weight that the row gives
// it.
struct ReferenceKey {
  int64_t index = 0;  // of the key
  double dot = 0;     // (scale / temperature) * dot(query, key)
  double score = 0;   // after soft cap, ALiBi and bias
  double weight = 0;  // exp(score) / (exp(sink) + the sum of exp(score))
  // The rounding errors of a kernel are proportional to these two: the sum of
  // the absolute values of the products that add up to `dot`, and |ALiBi term|
  // + |bias|.
  double dot_magnitude = 0;
  double added_magnitude = 0;
};

// The softmax of one query row.
struct ReferenceRow {
  std::vector<ReferenceKey> keys;  // empty if no score is above -inf
  double lse = 0;                  // ln of the sum of exp(score) and exp(sink)
};

// Returns the scores and weights of query row `q_row` of query head `head` of
// batch entry `entry`, by the formula at AttentionOptions in attention.proto.
ReferenceRow ReferenceWeights(const AttentionProblem& problem,
                              const AttentionBuffers& inputs, int64_t entry,
                              int64_t head, int64_t q_row);

// Writes the sum of the values times the weights of `row` to
// `output` [v_head_dim].
void ReferenceOutput(const AttentionProblem& problem,
                     const AttentionBuffers& inputs, int64_t entry,
                     int64_t head, const ReferenceRow& row, double* output);

// Computes one row of the result: its output [v_head_dim] and its lse.
void ReferenceAttentionRow(const AttentionProblem& problem,
                           const AttentionBuffers& inputs, int64_t entry,
                           int64_t head, int64_t q_row, double* output,
                           double* lse);

// Computes all rows of the result. `output` has the shape problem.OutputShape()
// and `lse` problem.LseShape(); both are dense.
void ReferenceAttention(const AttentionProblem& problem,
                        const AttentionBuffers& inputs, double* output,
                        double* lse);

// Computes the gradients of a loss whose gradient with respect to the output is
// `inputs.grad_output`. Overwrites `grad_query`, `grad_key` and `grad_value`,
// which are dense and have the shapes of query, key and value. Computes output
// and lse itself and does not read those of `inputs`.
void ReferenceBackward(const AttentionProblem& problem,
                       const BackwardBuffers& inputs, double* grad_query,
                       double* grad_key, double* grad_value);

// Returns element `index` of an array of `type`.
double ReferenceElement(const void* data, DataType type, int64_t index);

}  // namespace attnd

#endif  // ATTND_CORE_REFERENCE_ATTENTION_H_
