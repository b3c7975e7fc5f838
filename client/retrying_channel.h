// Makes calls to a server, and repeats a call that failed if it may succeed
// later. Combines RpcChannel, which makes one attempt, with Retry, which
// decides whether there is another. Does not use gRPC itself, and does not know
// attention.
#ifndef ATTND_CLIENT_RETRYING_CHANNEL_H_
#define ATTND_CLIENT_RETRYING_CHANNEL_H_

#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "client/attention_client.h"
#include "client/retry.h"
#include "client/rpc_channel.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::client {

// The caller's side of an asynchronous call that exchanges several messages.
// Its functions run in threads of gRPC, one at a time, and must not block.
class AsyncExchange : public MessageExchange {
 public:
  // Called exactly once, when the call is over and will not be repeated.
  virtual void OnDone(const absl::Status& status) = 0;
};

// Offers the calls of RpcChannel, but makes as many attempts at each call as
// ClientOptions::retry allows. Calls fail with INVALID_ARGUMENT if gRPC rejects
// the options. Cheap to copy: copies share a connection. Thread-safe.
class RetryingChannel {
 public:
  explicit RetryingChannel(const ClientOptions& options);

  // Returns a channel on the same connection for questions about the health of
  // a server. It makes only one attempt at each call, and also calls servers
  // whose health is not SERVING.
  RetryingChannel ForHealth() const;

  // Calls `method`, waits, and passes the answer to `on_answer` if the call
  // succeeds. `method` is the full name: "/package.Service/Method".
  absl::Status Call(
      const std::string& method, const OutgoingMessage& request,
      const CallTime& time,
      const std::function<void(const ReceivedMessage&)>& on_answer) const;

  // Calls `method` with a small message, waits, and parses the answer into
  // `response`. Returns INTERNAL if the answer does not parse.
  absl::Status Call(const std::string& method,
                    const google::protobuf::MessageLite& request,
                    const CallTime& time,
                    google::protobuf::MessageLite* response) const;

  // Starts a call and returns at once. You may destroy this channel and the
  // elements of the request before the call is over, because the channel copies
  // elements that have no owner. The result can cancel the call, also during
  // the pauses between its attempts. It is null if the call could not start.
  std::shared_ptr<CallCanceller> Start(const std::string& method,
                                       OutgoingMessage request,
                                       const CallTime& time,
                                       std::unique_ptr<AsyncCall> call) const;

  // Makes a call that exchanges several messages, and waits until it is over.
  absl::Status Exchange(const std::string& method, const CallTime& time,
                        MessageExchange& exchange) const;

  // Starts a call that exchanges several messages, and returns at once.
  // `exchange` gets the result in OnDone. You may destroy this channel before
  // that. The result can cancel the call. It is null if the call could not
  // start.
  std::shared_ptr<CallCanceller> Start(
      const std::string& method, const CallTime& time,
      std::unique_ptr<AsyncExchange> exchange) const;

  // Makes a call that sends one request and receives several responses. Parses
  // each one into `response`, and then calls `on_response` in this thread. If
  // that returns false, or if `stop` asks for it, the call is cancelled, also
  // in a pause between its attempts. Makes no other attempt once a response has
  // arrived.
  absl::Status Stream(const std::string& method,
                      const google::protobuf::MessageLite& request,
                      google::protobuf::MessageLite* response,
                      const CallTime& time, const std::stop_token& stop,
                      const std::function<bool()>& on_response) const;

 private:
  std::shared_ptr<RpcChannel> channel_;
  RetryPolicy policy_;
  std::function<void(const absl::Status&)> on_retry_;
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_RETRYING_CHANNEL_H_
