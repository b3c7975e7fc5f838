// Merges the results of attention over parts of the keys into the result of
// attention over all keys. Use it if keys and values are on several servers, or
// if they arrive in parts, one after the other. It computes in this process and
// calls no server.
#ifndef ATTND_CLIENT_MERGE_H_
#define ATTND_CLIENT_MERGE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "client/types.h"

namespace attnd::client {

// The result of a forward call over a part of the keys.
struct AttentionPart {
  ConstElements output;  // F32, F16 or BF16
  ConstElements lse;     // F32
};

// Merges `parts`, and writes to `merged` what one call over the keys of all
// parts would return. For each query row, with weight[p] = exp(lse[p]), it
// computes
//
//   output = sum_p weight[p] * output[p] / sum_p weight[p]
//   lse    = ln(sum_p weight[p])
//
// Every `output` has the shape `output_shape`, in the order of axes `layout`;
// use AttentionReply::output_shape. Every `lse` has the shape
// LseShape(output_shape, layout). `merged.lse` can be unset. The function adds
// the parts in the given order and in double precision. It rounds once, to the
// type of `merged.output`. The method is that of FlashAttention
// (arXiv:2205.14135, section 3.1) and FlashDecoding. docs/numerics.md ("Merging
// parts") states the error.
//
// - A key must not be in more than one part. If you divide the keys by
//   position, set AttentionOptions::query_offsets so that causal masks and
//   windows stay correct. A sink has to be in exactly one part, so pass
//   sink_logits to only one of the calls.
// - A row that saw no key in a part has lse = -inf there, and this function
//   does not read its output in that part. If a row saw no key in any part, or
//   if there are no parts, its output is 0 and its lse is -inf, as in the
//   answer of a server.
// - If an lse is NaN or +inf, the row becomes NaN. NaN and inf in an output
//   affect only their own column.
//
// `merged` can be in the memory of one of the parts if it has the same types as
// that part. So you can merge one part after the other into a result. Use F32
// for that, because each call rounds.
//
// If a shape, a type or a size is wrong, the function returns INVALID_ARGUMENT
// with the name of the field, and writes nothing. Thread-safe.
//
//   std::vector<AttentionPart> parts = {{output_a, lse_a}, {output_b, lse_b}};
//   absl::Status status = MergeAttention(parts, reply.output_shape,
//       {.output = output, .lse = lse});
absl::Status MergeAttention(std::span<const AttentionPart> parts,
                            const std::vector<int64_t>& output_shape,
                            const AttentionOutputs& merged,
                            Layout layout = Layout::kBhsd);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_MERGE_H_
