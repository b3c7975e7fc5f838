// Encodes the request of a forward method as one message. Uses protobuf, but
// not gRPC.
#ifndef ATTND_CLIENT_FORWARD_REQUEST_H_
#define ATTND_CLIENT_FORWARD_REQUEST_H_

#include "absl/status/status.h"
#include "attnd/v1/attention.pb.h"
#include "client/types.h"
#include "wire/outgoing_message.h"

namespace attnd::client {

// A forward method. SelfAttention sends one tensor as query, key and value, and
// CrossAttention sends one as key and value. If such a call streams, it sends
// the tensor two or three times, because the header of AttentionStream is an
// AttentionRequest.
enum class Method { kAttention, kSelfAttention, kCrossAttention };

// The arguments of a call. Does not own them.
struct ForwardCall {
  Method method;
  const AttentionInputs& inputs;
  const AttentionOutputs& outputs;
  const AttentionOptions& options;
};

// Returns the name under which gRPC calls `method`.
const char* NameOf(Method method);

// Returns the options that follow from the outputs of a call: whether it
// returns lse, the type of the output, and the places of outputs in shared
// memory.
v1::AttentionOptions OptionsFrom(const AttentionOutputs& outputs);

// Returns the request of `call`. It borrows large elements that have no owner.
OutgoingMessage EncodeForward(const ForwardCall& call);

// Returns INVALID_ARGUMENT if an output in shared memory has another size than
// the answer. This check has to come before the call, because the server itself
// writes the answer there.
absl::Status CheckOutputSizes(const ForwardCall& call);

// Returns whether any tensor of `call` is in shared memory. Such a call cannot
// stream.
bool SharesMemory(const ForwardCall& call);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_FORWARD_REQUEST_H_
