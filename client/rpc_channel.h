// Calls the methods of a server by name: sends messages and receives the
// answers. Each call is one attempt. client/retrying_channel.h repeats failed
// calls. This is the only part of the client that uses gRPC, and it knows
// nothing about attention. Keep rpc_channel.cc small, because it is compiled
// without thread sanitizer (base/tsan_ordering.h).
#ifndef ATTND_CLIENT_RPC_CHANNEL_H_
#define ATTND_CLIENT_RPC_CHANNEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/access.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace google::protobuf {
class MessageLite;
}

namespace attnd::client {

// Receives the result of an asynchronous call.
class AsyncCall {
 public:
  virtual ~AsyncCall() = default;
  // The channel calls this exactly once, in a thread of gRPC. It must not
  // block. `answer` is null if the call failed, or if it was a MessageExchange.
  virtual void OnDone(const absl::Status& status,
                      const ReceivedMessage* answer) = 0;
};

// A call with many messages. The client first sends all of its messages, and
// then receives all messages of the server.
class MessageExchange {
 public:
  virtual ~MessageExchange() = default;
  // Returns the next message to send, or nothing if there are no more.
  virtual std::optional<OutgoingMessage> Next() = 0;
  // Handles a received message. Return false to end the call with CANCELLED.
  virtual bool OnResponse(const ReceivedMessage& message) = 0;
  // Prepares another attempt: forgets what was received, and makes Next begin
  // with the first message again. Returns false if there must be no other
  // attempt.
  virtual bool Restart() = 0;
};

// Receives the end of a pause that StartTimer began.
class AsyncTimer {
 public:
  virtual ~AsyncTimer() = default;
  // The channel calls this exactly once, in a thread of gRPC, when the pause is
  // over or is cancelled. It must not block.
  virtual void OnTimer() = 0;
};

// Stops the call or the pause for which it was returned. Thread-safe.
class CallCanceller {
 public:
  virtual ~CallCanceller() = default;
  virtual void Cancel() = 0;
};

struct ChannelOptions {
  std::string target;  // a gRPC target
  // The sizes of the largest messages that the channel sends and receives. A
  // larger message ends its call with RESOURCE_EXHAUSTED.
  int64_t sent_bytes = 0;
  int64_t received_bytes = 0;
  // A gRPC service config as JSON. If it is empty, the channel uses attnd's own
  // config.
  std::string service_config = {};
  // As in ClientOptions.
  bool only_healthy = true;
  // If this is an error, it is also the error of the channel.
  absl::StatusOr<Access> access = Access();
};

// A connection to a server. Thread-safe.
//
// A `timeout` is the time that a call may take from its start.
// absl::InfiniteDuration() sets no limit. The status of a failed call carries
// the details that the server sent. Read them with DetailsOf
// (client/error_details.h).
class RpcChannel {
 public:
  // Does not open a connection yet. The first call does that.
  explicit RpcChannel(ChannelOptions options);
  ~RpcChannel();

  // Returns INVALID_ARGUMENT if the options are wrong, for example because gRPC
  // refuses the service config, and OK otherwise. Make calls only if this is
  // OK.
  const absl::Status& error() const;

  // Returns a channel on the same connections that also calls servers whose
  // health is not SERVING. It exists as long as this channel.
  RpcChannel& ForAnyHealth();

  // Sends `request` and waits for the end of the call. If it succeeds, calls
  // `on_answer` in this thread. First copies data of the request that has no
  // owner. This thread itself writes to and reads from the socket, so that no
  // other thread has to wake up.
  absl::Status Call(
      const std::string& method, const OutgoingMessage& request,
      absl::Duration timeout,
      const std::function<void(const ReceivedMessage&)>& on_answer);

  // Sends `request` and returns at once. `call` gets the answer. Before the
  // call is over, you may already destroy this channel, and the data of the
  // request that has no owner, because it is copied.
  std::shared_ptr<CallCanceller> Start(const std::string& method,
                                       const OutgoingMessage& request,
                                       absl::Duration timeout,
                                       std::shared_ptr<AsyncCall> call);

  // Sends all messages of `exchange`, receives all messages of the server, and
  // waits for the end of the call. Uses `exchange` in this thread only. Asks it
  // for the next message when gRPC has passed the previous one to the
  // connection.
  absl::Status Exchange(const std::string& method, absl::Duration timeout,
                        MessageExchange& exchange);
  // Starts an exchange and returns at once. Threads of gRPC call `exchange`,
  // one at a time. It must not block. `call` gets the status of the call.
  std::shared_ptr<CallCanceller> Start(
      const std::string& method, absl::Duration timeout,
      std::shared_ptr<MessageExchange> exchange,
      std::shared_ptr<AsyncCall> call);

  // Waits for the time `pause`, or until `stop` asks to stop. In that time this
  // thread lets gRPC work, because there may be no other thread in which gRPC
  // could open its connection.
  void Pause(absl::Duration pause, const std::stop_token& stop);
  // Starts a pause and returns at once. `timer` exists until the returned
  // canceller is destroyed.
  static std::shared_ptr<CallCanceller> StartTimer(
      absl::Duration pause, std::shared_ptr<AsyncTimer> timer);

  // Sends one request, receives many responses, and waits for the end of the
  // call. Parses each response into `response`, and then calls `on_response` in
  // this thread. If that returns false, or if `stop` asks for it before the
  // call is over, the call ends with CANCELLED. Returns INTERNAL if a response
  // does not parse.
  absl::Status Stream(const std::string& method,
                      const google::protobuf::MessageLite& request,
                      google::protobuf::MessageLite* response,
                      absl::Duration timeout, const std::stop_token& stop,
                      const std::function<bool()>& on_response);

 private:
  class Impl;
  explicit RpcChannel(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_RPC_CHANNEL_H_
