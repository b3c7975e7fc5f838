#include "client/retrying_channel.h"

#include <mutex>
#include <optional>
#include <random>
#include <utility>

#include "base/status_macros.h"
#include "base/tsan_ordering.h"
#include "client/message_limits.h"
#include "google/protobuf/message_lite.h"

namespace attnd::client {
namespace {

using google::protobuf::MessageLite;
using OnRetry = std::function<void(const absl::Status&)>;

// Returns a random number that is uniformly distributed in [0, 1).
double Random() {
  thread_local std::minstd_rand engine(std::random_device{}());
  return std::uniform_real_distribution<double>()(engine);
}

// Makes attempts in this thread until one succeeds or there must be no other.
// Calls `may_retry` after each failed attempt, and makes no other if that
// returns false. `stop` ends a pause between attempts, and with it the call.
template <typename Attempt, typename MayRetry>
absl::Status CallWithRetries(RpcChannel& channel, const RetryPolicy& policy,
                             const OnRetry& on_retry, const CallTime& time,
                             const Attempt& attempt, const MayRetry& may_retry,
                             const std::stop_token& stop = {}) {
  ATTND_RETURN_IF_ERROR(channel.error());
  absl::Status status = attempt();
  if (status.ok()) return status;
  Retry retry(policy, time);
  while (!status.ok() && may_retry()) {
    ATTND_ASSIGN_OR_RETURN(
        const absl::Duration pause,
        retry.AfterFailure(status, CallTime::Now(), Random()));
    if (on_retry) on_retry(status);
    channel.Pause(pause, stop);
    if (stop.stop_requested()) return retry.CancelledError();
    status = attempt();
  }
  return status;
}

// An asynchronous call with all its attempts. Its current attempt or pause
// keeps it alive, and so does the caller, who may cancel it at any time. gRPC
// runs attempts and pauses one after the other, in threads of its own.
class RetriedCall : public AsyncCall,
                    public AsyncTimer,
                    public CallCanceller,
                    public std::enable_shared_from_this<RetriedCall> {
 public:
  RetriedCall(std::shared_ptr<RpcChannel> channel, const RetryPolicy& policy,
              OnRetry on_retry, const CallTime& time)
      : channel_(std::move(channel)),
        time_(time),
        on_retry_(std::move(on_retry)),
        retry_(policy, time) {}

  void StartAttempt() {
    std::unique_lock lock(mutex_);
    if (cancelled_) {
      const absl::Status status = retry_.CancelledError();
      lock.unlock();
      End(status, nullptr);
      return;
    }
    const int step = ++step_;
    lock.unlock();
    KeepCanceller(step, MakeAttempt(*channel_, time_.Left()));
  }

  void OnTimer() override { StartAttempt(); }

  void OnDone(const absl::Status& status,
              const ReceivedMessage* answer) override {
    const absl::Status error = status.ok() ? status : PauseOrError(status);
    if (status.ok() || !error.ok()) End(error, answer);
  }

  void Cancel() override {
    std::shared_ptr<CallCanceller> current;
    {
      const std::lock_guard lock(mutex_);
      cancelled_ = true;
      current = current_;
    }
    if (current != nullptr) current->Cancel();
  }

 protected:
  template <typename Type>
  std::shared_ptr<Type> Self() {
    return {shared_from_this(), dynamic_cast<Type*>(this)};
  }

  std::mutex mutex_;

 private:
  virtual std::shared_ptr<CallCanceller> MakeAttempt(
      RpcChannel& channel, absl::Duration timeout) = 0;
  // Whether another attempt may follow a failed one. Called with the lock held.
  virtual bool MayRetry() { return true; }

  // Passes the result to the caller. Called once, when the call is over.
  virtual void Finish(const absl::Status& status,
                      const ReceivedMessage* answer) = 0;

  void End(const absl::Status& status, const ReceivedMessage* answer) {
    // Both the current pause and on_retry, which may hold the call to cancel
    // it, can refer to this call. If the call kept them, it would never be
    // freed.
    std::shared_ptr<CallCanceller> current;
    OnRetry on_retry;
    {
      const std::lock_guard lock(mutex_);
      ++step_;
      current = std::move(current_);
      on_retry = std::exchange(on_retry_, nullptr);
    }
    Finish(status, answer);
  }

  // Starts a pause and returns OK if the call continues after it. Returns the
  // error of the call if it does not.
  absl::Status PauseOrError(const absl::Status& status) {
    absl::StatusOr<absl::Duration> pause;
    {
      const std::lock_guard lock(mutex_);
      if (cancelled_ || !MayRetry()) return status;
      pause = retry_.AfterFailure(status, CallTime::Now(), Random());
      if (!pause.ok()) return pause.status();
    }
    // The lock is not held here, because on_retry_ may cancel the call.
    if (on_retry_) on_retry_(status);
    int step = 0;
    {
      const std::lock_guard lock(mutex_);
      if (cancelled_) return retry_.CancelledError();
      step = ++step_;
    }
    KeepCanceller(step, channel_->StartTimer(*pause, Self<AsyncTimer>()));
    return absl::OkStatus();
  }

  // Stores what cancels `step`, unless that step is already over. Cancels it at
  // once if the call was cancelled in the meantime, without holding the lock,
  // because threads of gRPC that need the lock would have to wait.
  void KeepCanceller(int step,
                     const std::shared_ptr<CallCanceller>& canceller) {
    {
      const std::lock_guard lock(mutex_);
      if (step != step_) return;
      current_ = canceller;
      if (!cancelled_) return;
    }
    canceller->Cancel();
  }

  const std::shared_ptr<RpcChannel> channel_;
  const CallTime time_;
  OnRetry on_retry_;
  Retry retry_;
  bool cancelled_ = false;
  int step_ = 0;                            // counts attempts and pauses
  std::shared_ptr<CallCanceller> current_;  // cancels the current step
};

class RetriedUnaryCall final : public RetriedCall {
 public:
  RetriedUnaryCall(std::shared_ptr<RpcChannel> channel,
                   const RetryPolicy& policy, OnRetry on_retry,
                   const CallTime& time, std::string method,
                   OutgoingMessage request, std::unique_ptr<AsyncCall> call)
      : RetriedCall(std::move(channel), policy, std::move(on_retry), time),
        method_(std::move(method)),
        request_(std::move(request)),
        call_(std::move(call)) {}

 private:
  std::shared_ptr<CallCanceller> MakeAttempt(RpcChannel& channel,
                                             absl::Duration timeout) override {
    return channel.Start(method_, request_, timeout, Self<AsyncCall>());
  }
  void Finish(const absl::Status& status,
              const ReceivedMessage* answer) override {
    std::unique_ptr<AsyncCall> call;
    OutgoingMessage request;
    {
      const std::lock_guard lock(mutex_);
      call = std::move(call_);
      // This frees the inputs now, even if the caller keeps the canceller.
      request = std::move(request_);
    }
    call->OnDone(status, answer);
  }

  const std::string method_;
  OutgoingMessage request_;
  std::unique_ptr<AsyncCall> call_;
};

class RetriedExchange final : public RetriedCall, public MessageExchange {
 public:
  RetriedExchange(std::shared_ptr<RpcChannel> channel,
                  const RetryPolicy& policy, OnRetry on_retry,
                  const CallTime& time, std::string method,
                  std::unique_ptr<AsyncExchange> exchange)
      : RetriedCall(std::move(channel), policy, std::move(on_retry), time),
        method_(std::move(method)),
        exchange_(std::move(exchange)) {}

  std::optional<OutgoingMessage> Next() override {
    const TsanTurn turn(&mutex_);
    return exchange_->Next();
  }
  bool OnResponse(const ReceivedMessage& message) override {
    const TsanTurn turn(&mutex_);
    return exchange_->OnResponse(message);
  }
  bool Restart() override { return exchange_->Restart(); }

 private:
  std::shared_ptr<CallCanceller> MakeAttempt(RpcChannel& channel,
                                             absl::Duration timeout) override {
    return channel.Start(method_, timeout, Self<MessageExchange>(),
                         Self<AsyncCall>());
  }
  bool MayRetry() override { return Restart(); }
  void Finish(const absl::Status& status,
              const ReceivedMessage* /*answer*/) override {
    std::unique_ptr<AsyncExchange> exchange;
    {
      const std::lock_guard lock(mutex_);
      exchange = std::move(exchange_);
    }
    exchange->OnDone(status);
  }

  const std::string method_;
  std::unique_ptr<AsyncExchange> exchange_;
};

}  // namespace

RetryingChannel::RetryingChannel(const ClientOptions& options)
    : channel_(std::make_shared<RpcChannel>(ChannelOptions{
          .target = options.target,
          .sent_bytes = options.max_message_bytes,
          .received_bytes = ReceiveLimit(options.max_message_bytes),
          .service_config = options.service_config,
          .only_healthy = options.only_healthy,
          .access = Access::Load(options)})),
      policy_(options.retry),
      on_retry_(options.on_retry) {}

RetryingChannel RetryingChannel::ForHealth() const {
  RetryingChannel channel = *this;
  channel.policy_.max_attempts = 1;
  // The channel for any health is a part of this one, so it keeps this one.
  channel.channel_ = {channel_, &channel_->ForAnyHealth()};
  return channel;
}

absl::Status RetryingChannel::Call(
    const std::string& method, const OutgoingMessage& request,
    const CallTime& time,
    const std::function<void(const ReceivedMessage&)>& on_answer) const {
  return CallWithRetries(
      *channel_, policy_, on_retry_, time,
      [&] { return channel_->Call(method, request, time.Left(), on_answer); },
      [] { return true; });
}

absl::Status RetryingChannel::Call(const std::string& method,
                                   const MessageLite& request,
                                   const CallTime& time,
                                   MessageLite* response) const {
  bool parsed = true;
  const absl::Status status =
      Call(method, OutgoingMessage::Of(request), time,
           [&](const ReceivedMessage& answer) {
             ReceivedStream stream(answer);
             parsed = response->ParseFromZeroCopyStream(&stream);
           });
  return parsed ? status : BadResponse();
}

std::shared_ptr<CallCanceller> RetryingChannel::Start(
    const std::string& method, OutgoingMessage request, const CallTime& time,
    std::unique_ptr<AsyncCall> call) const {
  if (!channel_->error().ok()) {
    call->OnDone(channel_->error(), nullptr);
    return nullptr;
  }
  request.CopyIfBorrowed();
  auto retried = std::make_shared<RetriedUnaryCall>(
      channel_, policy_, on_retry_, time, method, std::move(request),
      std::move(call));
  retried->StartAttempt();
  return retried;
}

absl::Status RetryingChannel::Exchange(const std::string& method,
                                       const CallTime& time,
                                       MessageExchange& exchange) const {
  return CallWithRetries(
      *channel_, policy_, on_retry_, time,
      [&] { return channel_->Exchange(method, time.Left(), exchange); },
      [&] { return exchange.Restart(); });
}

std::shared_ptr<CallCanceller> RetryingChannel::Start(
    const std::string& method, const CallTime& time,
    std::unique_ptr<AsyncExchange> exchange) const {
  if (!channel_->error().ok()) {
    exchange->OnDone(channel_->error());
    return nullptr;
  }
  auto retried = std::make_shared<RetriedExchange>(
      channel_, policy_, on_retry_, time, method, std::move(exchange));
  retried->StartAttempt();
  return retried;
}

absl::Status RetryingChannel::Stream(
    const std::string& method, const MessageLite& request,
    MessageLite* response, const CallTime& time, const std::stop_token& stop,
    const std::function<bool()>& on_response) const {
  bool has_response = false;
  return CallWithRetries(
      *channel_, policy_, on_retry_, time,
      [&] {
        return channel_->Stream(method, request, response, time.Left(), stop,
                                [&] {
                                  has_response = true;
                                  return on_response();
                                });
      },
      [&] { return !has_response && !stop.stop_requested(); }, stop);
}

}  // namespace attnd::client
