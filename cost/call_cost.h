// Computes how many bytes of memory one attention call takes on a server. The
// server reserves these bytes before it accepts the call. MemoryEstimate and
// `attnctl estimate --offline` report them.
#ifndef ATTND_COST_CALL_COST_H_
#define ATTND_COST_CALL_COST_H_

#include <cstdint>
#include <limits>

#include "base/types.h"
#include "core/attention_params.h"
#include "core/memory_estimator.h"
#include "wire/message_sizes.h"

namespace attnd {

// The most bytes that a call of AttentionStream holds for its messages: the
// chunk that is being copied, and the chunks that gRPC receives and keeps
// meanwhile. A call whose tensors are smaller holds less. gRPC alone decides
// how much a client may send ahead. The most that was measured is 10 MiB, and
// often it is 1 MiB, so the estimate for a stream of large tensors is too high
// by the rest (docs/performance/accuracy.md).
inline constexpr int64_t kStreamBufferBytes =
    16 * (kMaxChunkBytes + kMessageEnvelopeBytes);

// How the tensors of a call reach the server and leave it.
struct TensorTransfer {
  Transport transport = Transport::kInline;
  // The bytes of those inputs that the server copies to memory of its own.
  int64_t copied_bytes = 0;
  // The size of the largest message that the server sends or receives.
  int64_t max_message_bytes = std::numeric_limits<int64_t>::max();

  // The members below are known only after the request has arrived.

  // The size of the request's message if the server keeps the message until the
  // workers have copied its tensors, and otherwise 0.
  int64_t kept_message_bytes = 0;
  // The bytes that the call holds while the request is decoded.
  int64_t decoding_bytes = 0;
  // Whether the answer carries the output as a list of numbers (`values`). Such
  // an output is copied twice: to a protobuf message, and when that is
  // serialized.
  bool output_as_values = false;
};

// The bytes of memory that one call takes on the server, and the sizes of its
// messages. A number that does not fit an int64 is kMaxInt64, and the others
// are exact.
struct CallCost {
  // The most that the call holds at any time.
  int64_t peak_bytes = 0;
  // What the call holds from the end of decoding until the answer is computed.
  int64_t computing_bytes = 0;
  // What the call holds while the answer is sent, not counting the output.
  int64_t answering_bytes = 0;
  // What its messages take in the server's memory, not counting the tensors
  // that the server keeps outside of messages.
  int64_t wire_bytes = 0;
  // The size of the largest message of the answer.
  int64_t response_bytes = 0;
  // The size of the largest message of the request or of the answer.
  int64_t required_message_bytes = 0;
};

// Returns how many bytes of memory one attention call takes on the server.
// `estimate` is what its computation takes, `options` are the options in its
// request, and `transfer` says how its tensors travel. The time that this
// function takes depends only on the length of the lists in `options` (such as
// key_lengths). If a number in `estimate`, in `transfer` or in a list grows, no
// number of the result falls. The search for the largest call that fits relies
// on this.
//
// A call with one message each way (Transport::kInline) holds the message of
// its request and the tensors that are copied out of that message. The message
// is freed before the call computes, but malloc keeps its memory mapped for the
// next message, so its bytes count until the call ends. The output counts only
// once, because it is sent from the memory to which the kernel wrote it. The
// peak also has what gRPC and the server need to keep track of a call.
CallCost CostOfCall(const MemoryEstimate& estimate,
                    const AttentionOptions& options,
                    const TensorTransfer& transfer);

}  // namespace attnd

#endif  // ATTND_COST_CALL_COST_H_
