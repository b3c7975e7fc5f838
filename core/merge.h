// Joins attention over disjoint sets of keys into attention over all of them.
// Knows results only: not where they were computed, nor over which keys.
#ifndef ATTND_CORE_MERGE_H_
#define ATTND_CORE_MERGE_H_

#include <cstdint>
#include <span>

namespace attnd {

// What one attention call over some of the keys answered, dense.
struct PartialResult {
  const float* output = nullptr;  // [rows, v_head_dim]
  const float* lse = nullptr;     // [rows], natural logarithms
};

// For each row, with weight[p] = exp(lse[p]):
//
//   output = sum_p weight[p] * output[p] / sum_p weight[p]
//   lse    = ln(sum_p weight[p])
//
// Every key must have been seen by at most one of `partials`, and a sink must
// have entered exactly one of them. They are added in the order given, in
// double, and rounded to f32 once: what the merge itself adds is half an ulp of
// output and of lse, and what an error x in a partial's lse costs is a change
// of its weight by the factor exp(x).
//
// A partial with lse = -inf saw nothing: its output is not even read, so may
// hold anything. Where all are such, and where there are none, output is 0 and
// lse -inf. lse = NaN or +inf makes the row's output NaN, and lse what the sum
// says. A NaN or inf in a partial's output stays in its column.
//
// `output` and `lse` may be one of the partials' own. Allocates nothing;
// thread-safe.
void MergePartials(std::span<const PartialResult> partials, int64_t rows,
                   int64_t v_head_dim, float* output, float* lse);

}  // namespace attnd

#endif  // ATTND_CORE_MERGE_H_
