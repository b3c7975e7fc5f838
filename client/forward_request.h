// Encodes the request of Attention, SelfAttention or CrossAttention as one
// message. Uses protobuf, but not gRPC.
#ifndef ATTND_CLIENT_FORWARD_REQUEST_H_
#define ATTND_CLIENT_FORWARD_REQUEST_H_

#include "absl/status/status.h"
#include "attnd/v1/attention.pb.h"
#include "client/types.h"
#include "wire/outgoing_message.h"

namespace attnd::client {

// The rpcs that compute attention (not its gradients). SelfAttention sends one
// tensor, which is query, key and value; CrossAttention sends a query and one
// tensor that is key and value. If such a call is streamed, the tensor is sent
// three or two times, because AttentionStream has no such short forms.
enum class Method { kAttention, kSelfAttention, kCrossAttention };

// One call of Attention, SelfAttention or CrossAttention. Refers to the
// caller's arguments and does not own them.
struct ForwardCall {
  Method method;
  const AttentionInputs& inputs;
  const AttentionOutputs& outputs;
  const AttentionOptions& options;
};

// Returns the name under which gRPC calls `method`.
const char* NameOf(Method method);

// Returns the options that tell the server what `outputs` can hold: whether to
// return lse, the type of the output, and the places of outputs in shared
// memory.
v1::AttentionOptions OptionsFrom(const AttentionOutputs& outputs);

// Returns the request of `call`. Large tensors without an owner
// (ConstElements::OwnedBy) are not copied, so they must stay valid until the
// message is sent.
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
