// The calls that compute no attention: they parse, look something up and
// answer. Knows no gRPC.
#ifndef ATTND_SERVER_PLAIN_CALLS_H_
#define ATTND_SERVER_PLAIN_CALLS_H_

#include <functional>

#include "absl/status/statusor.h"
#include "core/tile_scheduler.h"
#include "server/service_context.h"
#include "server/wire_message.h"

namespace attnd::server {

using PlainDone = std::function<void(absl::StatusOr<ResponsePieces>)>;

// Messages in, messages out; every one takes a slot while it runs. `done` is
// called once: inside the call where the message is light, else by the decode
// thread, and it must not block. `context` and `stop`, which ends a call that
// waits for that thread, must live until then.
void AnswerMemoryEstimate(const ServiceContext& context,
                          ReceivedMessage received, const StopSignal& stop,
                          PlainDone done);
void AnswerServerInfo(const ServiceContext& context, ReceivedMessage received,
                      const StopSignal& stop, PlainDone done);

}  // namespace attnd::server

#endif  // ATTND_SERVER_PLAIN_CALLS_H_
