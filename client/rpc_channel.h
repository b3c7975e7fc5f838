// Messages to a server and back, by method name, each call in one attempt:
// retrying_channel.h tries again. The only part of the client that knows gRPC;
// knows nothing of attention. Its .cc stays thin, because thread sanitizer
// cannot look into it.
#ifndef ATTND_CLIENT_RPC_CHANNEL_H_
#define ATTND_CLIENT_RPC_CHANNEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "wire/outgoing_message.h"

namespace google::protobuf {
class MessageLite;
namespace io {
class ZeroCopyInputStream;
}
}  // namespace google::protobuf

namespace attnd::client {

// A call that somebody else completes.
class AsyncCall {
 public:
  virtual ~AsyncCall() = default;
  // Called exactly once, in a thread of gRPC; must not block. `answer` is null
  // where the call failed.
  virtual void OnDone(const absl::Status& status,
                      google::protobuf::io::ZeroCopyInputStream* answer) = 0;
};

// A call of many messages: first all that this side sends, then all that it
// gets.
class MessageExchange {
 public:
  virtual ~MessageExchange() = default;
  // The next to send; nothing where there is no more.
  virtual std::optional<OutgoingMessage> Next() = 0;
  // One that came; false ends the call with CANCELLED.
  virtual bool OnResponse(
      google::protobuf::io::ZeroCopyInputStream* message) = 0;
  // Prepares another attempt: drops what came, and sends from the start again.
  // False where there must be no other attempt.
  virtual bool Restart() = 0;
};

// Code that runs after a pause.
class AsyncTimer {
 public:
  virtual ~AsyncTimer() = default;
  // Called exactly once, in a thread of gRPC, when the pause is over or
  // cancelled; must not block.
  virtual void OnTimer() = 0;
};

// What can stop a call or a pause from another thread.
class CallCanceller {
 public:
  virtual ~CallCanceller() = default;
  virtual void Cancel() = 0;
};

// The largest messages that a channel lets through; others end their call with
// RESOURCE_EXHAUSTED.
struct ChannelLimits {
  int64_t sent_bytes;
  int64_t received_bytes;
};

// Thread-safe. A timeout counts from the start of its call; an infinite one
// sets no limit. A failed call's status carries the server's details as
// error_details.h says.
class RpcChannel {
 public:
  // Opens no connection yet: the first call does. An empty `service_config`
  // stands for attnd's own.
  RpcChannel(const std::string& target, const ChannelLimits& limits,
             const std::string& service_config);
  ~RpcChannel();

  // INVALID_ARGUMENT where gRPC refuses the service config: then no call may be
  // made.
  const absl::Status& error() const;

  // Waits in the calling thread, which also moves the bytes: no other thread
  // has to wake up. `on_answer` gets the answer of a call that succeeded.
  // Elements of the request that have no owner are copied at the start.
  absl::Status Call(
      const std::string& method, const OutgoingMessage& request,
      absl::Duration timeout,
      const std::function<void(google::protobuf::io::ZeroCopyInputStream*)>&
          on_answer);

  // Returns at once. The call outlives this channel where it has to, and the
  // elements of the request where those have no owner.
  std::shared_ptr<CallCanceller> Start(const std::string& method,
                                       const OutgoingMessage& request,
                                       absl::Duration timeout,
                                       std::shared_ptr<AsyncCall> call);

  // Sends the next message once HTTP/2 has taken the one before.
  absl::Status Exchange(const std::string& method, absl::Duration timeout,
                        MessageExchange& exchange);
  // `exchange` runs in threads of gRPC, which take turns, and must not block.
  // `call` is done without an answer.
  std::shared_ptr<CallCanceller> Start(
      const std::string& method, absl::Duration timeout,
      std::shared_ptr<MessageExchange> exchange,
      std::shared_ptr<AsyncCall> call);

  // Waits in the calling thread. It polls gRPC and does not sleep, because
  // there may be no other thread that opens gRPC's connection in the meantime.
  void Pause(absl::Duration pause);
  // Returns at once. `timer` is kept until what this returns is dropped.
  static std::shared_ptr<CallCanceller> StartTimer(
      absl::Duration pause, std::shared_ptr<AsyncTimer> timer);

  // One request, many responses: `on_response` runs in the calling thread
  // after each was read into `response`; false ends the call with
  // CANCELLED.
  absl::Status Stream(const std::string& method,
                      const google::protobuf::MessageLite& request,
                      google::protobuf::MessageLite* response,
                      absl::Duration timeout,
                      const std::function<bool()>& on_response);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_RPC_CHANNEL_H_
