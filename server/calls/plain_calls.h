// The calls that compute no attention: they parse the message, look something
// up and answer. Knows no gRPC.
#ifndef ATTND_SERVER_CALLS_PLAIN_CALLS_H_
#define ATTND_SERVER_CALLS_PLAIN_CALLS_H_

#include <functional>

#include "absl/status/statusor.h"
#include "core/tile_scheduler.h"
#include "server/calls/service_context.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::server {

using PlainDone = std::function<void(absl::StatusOr<OutgoingMessage>)>;

// Both answer `received` by calling `done` once: before they return if the
// message is light, or from the decode thread. `done` must not block. Each
// takes a slot while it runs. `stop` ends a call that waits for the decode
// thread. `context` and `stop` must live until `done` is called.
void AnswerMemoryEstimate(const ServiceContext& context,
                          ReceivedMessage received, const StopSignal& stop,
                          PlainDone done);
void AnswerServerInfo(const ServiceContext& context, ReceivedMessage received,
                      const StopSignal& stop, PlainDone done);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_PLAIN_CALLS_H_
