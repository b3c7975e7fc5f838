// What a problem costs in bytes before anything is allocated. The same numbers
// answer MemoryEstimate, feed admission and size the workspace.
#ifndef ATTND_CORE_MEMORY_ESTIMATOR_H_
#define ATTND_CORE_MEMORY_ESTIMATOR_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/attention_problem.h"
#include "core/backward_plan.h"
#include "core/kernel_plan.h"

namespace attnd {

// All in bytes but `flops`.
struct MemoryEstimate {
  int64_t input_bytes = 0;      // query, key, value, bias, mask
  int64_t output_bytes = 0;     // output, and lse where asked for
  int64_t workspace_bytes = 0;  // of all threads
  int64_t flash_bytes = 0;      // the three above
  int64_t naive_bytes = 0;      // q_heads * q_len * kv_len f32 scores of every
                                // batch entry, and input and output
  // 2 * (head_dim + v_head_dim) for each visible pair of query row and key.
  int64_t flops = 0;

  // 1 - flash_bytes / naive_bytes; negative for tiny problems, 0 for empty.
  double ReductionRatio() const;
};

// What a call holds on the server, by how its tensors travel.
struct RequestFootprint {
  int64_t wire_bytes = 0;  // message buffers that are no input or output
  int64_t peak_per_request_bytes = 0;  // the most that the call holds
  int64_t required_message_bytes = 0;  // the larger of request and response
};

// INVALID_ARGUMENT with reason INT64_RANGE: where what a caller adds to these
// figures does not fit any more.
absl::Status BytesOutOfRange();

// An upper bound of what a message carries beside its tensors' bytes.
inline constexpr int64_t kMessageEnvelopeBytes = 4096;

// The received message, and beside it the tensors that are copied out of it,
// workspace and output: what the message came in is free then, but stays mapped
// for the next message, so it counts for as long as the call. The output goes
// out from where the kernel wrote it.
// INVALID_ARGUMENT with reason INT64_RANGE where a figure does not fit.
absl::StatusOr<RequestFootprint> InlineFootprint(
    const MemoryEstimate& estimate);

// The most that a chunk of a streamed tensor carries.
inline constexpr int64_t kMaxChunkBytes = int64_t{1} << 20;

// What a call holds beside its tensors while they come and go in chunks: one
// that is copied in, and what the transport receives and keeps meanwhile, of
// which up to 11 MiB were measured.
inline constexpr int64_t kStreamBufferBytes =
    16 * (kMaxChunkBytes + kMessageEnvelopeBytes);

// Inputs are copied out of chunks as they come, and outputs go from where the
// kernel wrote them.
absl::StatusOr<RequestFootprint> StreamFootprint(
    const MemoryEstimate& estimate);

// Tensors stay in regions, which belong to the client, but for the mask, which
// is copied.
absl::StatusOr<RequestFootprint> SharedMemoryFootprint(
    const MemoryEstimate& estimate, int64_t mask_bytes);

// Immutable; safe to share between threads. Allocates nothing that counts.
class MemoryEstimator {
 public:
  // For a host that computes with `threads` workers on `machine`.
  MemoryEstimator(const MachineInfo& machine, int64_t threads)
      : machine_(machine), threads_(threads) {}

  // INVALID_ARGUMENT with reason INT64_RANGE where a figure does not fit.
  absl::StatusOr<MemoryEstimate> Estimate(
      const AttentionProblem& problem) const;
  // Where the problem is planned already, for the same machine.
  absl::StatusOr<MemoryEstimate> Estimate(const AttentionProblem& problem,
                                          const KernelPlan& plan) const;

  // The same for AttentionBackward: inputs are the forward's, its answers and
  // the gradient of output; outputs are three gradients; naive_bytes counts the
  // scores and their gradients.
  absl::StatusOr<MemoryEstimate> EstimateBackward(
      const AttentionProblem& problem) const;
  absl::StatusOr<MemoryEstimate> EstimateBackward(
      const AttentionProblem& problem, const BackwardPlan& plan) const;

 private:
  MachineInfo machine_;
  int64_t threads_;
};

}  // namespace attnd

#endif  // ATTND_CORE_MEMORY_ESTIMATOR_H_
