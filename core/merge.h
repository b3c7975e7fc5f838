// Merges the results of attention over disjoint sets of keys into the result
// over all of these keys. It needs only the results, wherever they were
// computed.
#ifndef ATTND_CORE_MERGE_H_
#define ATTND_CORE_MERGE_H_

#include <cstdint>
#include <span>

namespace attnd {

// The result of an attention call that had only some of the keys. Both arrays
// are dense.
struct PartialResult {
  const float* output = nullptr;  // [rows, v_head_dim]
  const float* lse = nullptr;     // [rows], natural logarithms
};

// Computes for each row, with weight[p] = exp(lse[p]):
//
//   output = sum_p weight[p] * output[p] / sum_p weight[p]
//   lse    = ln(sum_p weight[p])
//
// Each key must be part of at most one of `partials`, and sink logits (if there
// are any) of exactly one. Partials are added in the order given, in double,
// and the sums are rounded to f32 once. So the merge itself adds an error of
// half an ulp to output and lse. An error x in the lse of a partial changes its
// weight by the factor exp(x).
//
// A partial whose lse is -inf has seen no key. Its output is not read and may
// hold anything. If all partials are like that, or there are none, output is 0
// and lse is -inf. If an lse is NaN or +inf, the row's output is NaN and its
// lse follows from the formula. A NaN or inf in the output of a partial affects
// its own column only.
//
// `output` [rows, v_head_dim] and `lse` [rows] may be the arrays of one of the
// partials. The function does not allocate, and it is thread-safe.
void MergePartials(std::span<const PartialResult> partials, int64_t rows,
                   int64_t v_head_dim, float* output, float* lse);

}  // namespace attnd

#endif  // ATTND_CORE_MERGE_H_
