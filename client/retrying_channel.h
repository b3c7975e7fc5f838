// Makes calls again after failures that may pass. Knows RpcChannel and Retry,
// but neither gRPC nor attention.
#ifndef ATTND_CLIENT_RETRYING_CHANNEL_H_
#define ATTND_CLIENT_RETRYING_CHANNEL_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "client/attention_client.h"
#include "client/retry.h"
#include "client/rpc_channel.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::client {

// A call of many messages that somebody else completes: its functions run in
// threads of gRPC, one after the other, and must not block.
class AsyncExchange : public MessageExchange {
 public:
  // Called exactly once.
  virtual void OnDone(const absl::Status& status) = 0;
};

// The methods of RpcChannel, each with as many attempts as ClientOptions
// allows. They end with INVALID_ARGUMENT where gRPC refuses the options. Cheap
// to copy: copies share a connection. Thread-safe.
class RetryingChannel {
 public:
  explicit RetryingChannel(const ClientOptions& options);

  // A channel on the same connection that makes one attempt at each call.
  RetryingChannel Once() const;

  absl::Status Call(
      const std::string& method, const OutgoingMessage& request,
      const CallTime& time,
      const std::function<void(const ReceivedMessage&)>& on_answer) const;

  // The same for messages that are small. INTERNAL where the answer does not
  // parse.
  absl::Status Call(const std::string& method,
                    const google::protobuf::MessageLite& request,
                    const CallTime& time,
                    google::protobuf::MessageLite* response) const;

  // Returns at once. This channel may be destroyed before the call is over, and
  // so may the elements of the request: those without an owner are copied. The
  // call can also be cancelled during its pauses.
  std::shared_ptr<CallCanceller> Start(const std::string& method,
                                       OutgoingMessage request,
                                       const CallTime& time,
                                       std::unique_ptr<AsyncCall> call) const;

  absl::Status Exchange(const std::string& method, const CallTime& time,
                        MessageExchange& exchange) const;
  std::shared_ptr<CallCanceller> Start(
      const std::string& method, const CallTime& time,
      std::unique_ptr<AsyncExchange> exchange) const;

  // Makes no further attempt once a response has come.
  absl::Status Stream(const std::string& method,
                      const google::protobuf::MessageLite& request,
                      google::protobuf::MessageLite* response,
                      const CallTime& time,
                      const std::function<bool()>& on_response) const;

 private:
  std::shared_ptr<RpcChannel> channel_;
  RetryPolicy policy_;
  std::function<void(const absl::Status&)> on_retry_;
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_RETRYING_CHANNEL_H_
