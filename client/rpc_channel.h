// Sends messages to a server and receives its answers, by method name. Each
// call is one attempt: retrying_channel.h makes more. This is the only part of
// the client that knows gRPC, and it knows nothing of attention. Its .cc stays
// thin, because thread sanitizer cannot look into it.
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
#include "wire/received_message.h"

namespace google::protobuf {
class MessageLite;
}

namespace attnd::client {

// Gets the result of a call that no thread waits for.
class AsyncCall {
 public:
  virtual ~AsyncCall() = default;
  // Called exactly once, in a thread of gRPC. Must not block. `answer` is null
  // if the call failed.
  virtual void OnDone(const absl::Status& status,
                      const ReceivedMessage* answer) = 0;
};

// A call of many messages: first this side sends all of its messages, then it
// receives all of the server's.
class MessageExchange {
 public:
  virtual ~MessageExchange() = default;
  // Returns the next message to send, or nothing after the last.
  virtual std::optional<OutgoingMessage> Next() = 0;
  // Takes a received message. Returning false ends the call with CANCELLED.
  virtual bool OnResponse(const ReceivedMessage& message) = 0;
  // Prepares another attempt: forgets what was received, and sends from the
  // start again. Returns false if there must be no other attempt.
  virtual bool Restart() = 0;
};

// Code that runs after a pause.
class AsyncTimer {
 public:
  virtual ~AsyncTimer() = default;
  // Called exactly once, in a thread of gRPC, when the pause is over or
  // cancelled. Must not block.
  virtual void OnTimer() = 0;
};

// Stops a call or a pause. Thread-safe.
class CallCanceller {
 public:
  virtual ~CallCanceller() = default;
  virtual void Cancel() = 0;
};

// The sizes of the largest messages that a channel lets through. A larger one
// ends its call with RESOURCE_EXHAUSTED.
struct ChannelLimits {
  int64_t sent_bytes;
  int64_t received_bytes;
};

// A connection to a server. Thread-safe. A timeout counts from the start of its
// call, and an infinite one sets no limit. The status of a failed call carries
// the server's details, which error_details.h reads.
class RpcChannel {
 public:
  // Opens no connection yet: the first call does. If `service_config` is empty,
  // attnd's own is used.
  RpcChannel(const std::string& target, const ChannelLimits& limits,
             const std::string& service_config);
  ~RpcChannel();

  // Returns INVALID_ARGUMENT if gRPC refuses the service config. In that case
  // make no call.
  const absl::Status& error() const;

  // Waits in the calling thread, which also moves the bytes, so that no other
  // thread has to wake up. Calls `on_answer` if the call succeeds. Copies data
  // of the request that has no owner at the start.
  absl::Status Call(
      const std::string& method, const OutgoingMessage& request,
      absl::Duration timeout,
      const std::function<void(const ReceivedMessage&)>& on_answer);

  // Returns at once. This channel may be destroyed before the call is over, and
  // so may data of the request that has no owner.
  std::shared_ptr<CallCanceller> Start(const std::string& method,
                                       const OutgoingMessage& request,
                                       absl::Duration timeout,
                                       std::shared_ptr<AsyncCall> call);

  // Sends the next message once HTTP/2 has taken the one before.
  absl::Status Exchange(const std::string& method, absl::Duration timeout,
                        MessageExchange& exchange);
  // Returns at once. Threads of gRPC take turns at calling `exchange`, which
  // must not block. `call` gets no answer.
  std::shared_ptr<CallCanceller> Start(
      const std::string& method, absl::Duration timeout,
      std::shared_ptr<MessageExchange> exchange,
      std::shared_ptr<AsyncCall> call);

  // Waits in the calling thread. Polls gRPC instead of sleeping, because there
  // may be no other thread that opens gRPC's connection in the meantime.
  void Pause(absl::Duration pause);
  // Returns at once. Keeps `timer` until the returned canceller is destroyed.
  static std::shared_ptr<CallCanceller> StartTimer(
      absl::Duration pause, std::shared_ptr<AsyncTimer> timer);

  // Sends one request and receives many responses. Parses each into `response`
  // and then calls `on_response` in the calling thread. Returning false there
  // ends the call with CANCELLED.
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
