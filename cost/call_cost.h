// Computes how many bytes one attention call holds on a server. Admission
// reserves these bytes. MemoryEstimate and `attnctl estimate --offline` report
// them.
#ifndef ATTND_COST_CALL_COST_H_
#define ATTND_COST_CALL_COST_H_

#include <cstdint>
#include <limits>

#include "absl/status/statusor.h"
#include "base/types.h"
#include "core/attention_params.h"
#include "core/memory_estimator.h"
#include "wire/message_sizes.h"

namespace attnd {

// The bytes that a stream holds for its messages: the chunk that is being
// copied, and the chunks that gRPC receives and keeps in the meantime. The most
// that was measured is 11 MiB.
inline constexpr int64_t kStreamBufferBytes =
    16 * (kMaxChunkBytes + kMessageEnvelopeBytes);

// How the tensors of a call reach the server and leave it.
struct TensorTransfer {
  Transport transport = Transport::kInline;
  // The bytes of the inputs that the server copies to memory of its own.
  int64_t copied_bytes = 0;
  // The size of the largest message that the server sends or receives.
  int64_t max_message_bytes = std::numeric_limits<int64_t>::max();

  // The members below are known only after the request has arrived.

  // The size of the request's message, if the server keeps it until the workers
  // have copied its tensors.
  int64_t kept_message_bytes = 0;
  // The bytes that the call holds while the request is decoded.
  int64_t decoding_bytes = 0;
  // Whether the answer is a list of numbers. Such a list is copied to a
  // message, and the message is copied when it is serialized.
  bool output_as_values = false;
};

// The bytes that one call takes.
struct CallCost {
  // The most that the call holds at any time.
  int64_t peak_bytes = 0;
  // What the call holds from the end of decoding until the answer is computed.
  int64_t computing_bytes = 0;
  // What the call holds while the answer is sent, not counting the output.
  int64_t answering_bytes = 0;
  // What the messages take, not counting the tensors that the server keeps
  // outside of messages.
  int64_t wire_bytes = 0;
  // The size of the largest message of the answer.
  int64_t response_bytes = 0;
  // The size of the largest message of the request or of the answer.
  int64_t required_message_bytes = 0;
};

// Returns what one call takes. `estimate` is what its computation takes,
// `options` are the options in its request, and `transfer` says how its tensors
// travel. The time of this function depends only on the lists in `options`.
// INVALID_ARGUMENT with reason INT64_RANGE if a figure does not fit a signed
// 64-bit number.
//
// An inline call holds its message and the tensors that are copied out of it.
// The message is freed before the call computes, but malloc keeps its blocks
// mapped for the next message, so they count until the call ends. The output is
// sent from the memory to which the kernel wrote it, so it counts once.
absl::StatusOr<CallCost> CostOfCall(const MemoryEstimate& estimate,
                                    const AttentionOptions& options,
                                    const TensorTransfer& transfer);

}  // namespace attnd

#endif  // ATTND_COST_CALL_COST_H_
