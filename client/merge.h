// Joins attention over parts of the keys into attention over all of them. Use
// it where the keys and values lie on several servers, or arrive one part after
// the other. It computes in this process and calls no server.
#ifndef ATTND_CLIENT_MERGE_H_
#define ATTND_CLIENT_MERGE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "client/types.h"

namespace attnd::client {

// What a forward call over some of the keys answered.
struct AttentionPart {
  ConstElements output;  // F32, F16 or BF16
  ConstElements lse;     // F32
};

// Writes to `merged` what one call over the keys of all `parts` would answer.
// For each row, with weight[p] = exp(lse[p]):
//
//   output = sum_p weight[p] * output[p] / sum_p weight[p]
//   lse    = ln(sum_p weight[p])
//
// All outputs have the shape `output_shape` in `layout`, as AttentionReply has
// it, and all lse LseShape(output_shape, layout). They are added in the order
// given, in double, and rounded once, to the type of merged.output; merged.lse
// may be left out. docs/numerics.md ("Merging parts") has the error; the way to
// merge is that of FlashAttention (arXiv:2205.14135, section 3.1) and
// FlashDecoding.
//
// - Every key may be in at most one part. Where parts are cut by position,
//   AttentionOptions::query_offsets keeps causal and window rules right. A sink
//   has to be in exactly one part: give sink_logits to one call only.
// - A row that saw no key of a part has lse = -inf there, and its output is not
//   read. Where it saw none in any part, and where there are no parts, output
//   is 0 and lse -inf, as a server answers it.
// - An lse of NaN or +inf makes the row NaN. NaN and inf in an output stay in
//   their column.
//
// `merged` may be one of the parts if it has that part's type, so parts can be
// added one by one. Use F32 for that, since each merge rounds. Where a shape, a
// type or a size does not fit, the status is INVALID_ARGUMENT and names the
// field, and nothing is written. Thread-safe.
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
