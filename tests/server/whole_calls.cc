#include "tests/server/whole_calls.h"

#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/status/statusor.h"
#include "server/calls/benchmark_call.h"
#include "server/calls/message_stream.h"
#include "server/calls/plain_calls.h"
#include "server/calls/stream_call.h"
#include "tests/server/message_tools.h"

namespace attnd::server {
namespace {

ReceivedMessage Cut(const std::string& bytes, const Slicing& slicing) {
  return InSlices(bytes, slicing.max_bytes, slicing.seed);
}

WholeAnswer AnswerOf(const absl::StatusOr<OutgoingMessage>& pieces) {
  if (!pieces.ok()) return {.status = pieces.status(), .messages = {}};
  return {.status = absl::OkStatus(), .messages = {Join(*pieces)}};
}

// A stream on which the client reads every message at once.
class EagerStream : public MessageStream {
 public:
  void Read() override {
    const std::lock_guard lock(mutex_);
    reading_ = true;
  }
  void Write(OutgoingMessage message) override {
    const std::lock_guard lock(mutex_);
    answer_.messages.push_back(Join(message));
    writing_ = true;
    changed_.notify_all();
  }
  void Finish(const absl::Status& status) override {
    const std::lock_guard lock(mutex_);
    answer_.status = status;
    finished_ = true;
    changed_.notify_all();
  }
  int64_t sent_bytes() override { return 0; }
  void Break(const std::string& /*why*/) override {}

  // Returns whether the call asks for a message. The caller then gives it one.
  bool TakeRead() {
    const std::lock_guard lock(mutex_);
    return std::exchange(reading_, false);
  }
  // Returns whether a message was written. The caller then completes the write.
  bool TakeWrite() {
    const std::lock_guard lock(mutex_);
    return std::exchange(writing_, false);
  }
  // Waits for a write. Returns false if the call has ended.
  bool WaitForWrite() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return writing_ || finished_; });
    return std::exchange(writing_, false);
  }
  // The call must have ended.
  WholeAnswer TakeAnswer() {
    const std::lock_guard lock(mutex_);
    return std::move(answer_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reading_ = false;
  bool writing_ = false;
  bool finished_ = false;
  WholeAnswer answer_;
};

template <typename Answer>
WholeAnswer CallPlain(Answer answer, const ServiceContext& context,
                      ReceivedMessage received) {
  const StopSignal never;
  std::promise<WholeAnswer> whole;
  answer(context, 0, std::move(received), never,
         [&whole](const absl::StatusOr<OutgoingMessage>& pieces) {
           whole.set_value(AnswerOf(pieces));
         });
  return whole.get_future().get();
}

}  // namespace

WholeAnswer CallUnary(const ServiceContext& context, AttentionMethod method,
                      const std::string& request, const Slicing& slicing) {
  std::promise<WholeAnswer> answer;
  const auto call =
      std::make_shared<UnaryCall>(context, method, SteadyTime::max());
  call->Start(Cut(request, slicing),
              [&answer](const absl::StatusOr<OutgoingMessage>& pieces) {
                answer.set_value(AnswerOf(pieces));
              });
  return answer.get_future().get();
}

WholeAnswer CallMemoryEstimate(const ServiceContext& context,
                               const std::string& request,
                               const Slicing& slicing) {
  return CallPlain(AnswerMemoryEstimate, context, Cut(request, slicing));
}

WholeAnswer CallServerInfo(const ServiceContext& context,
                           const std::string& request, const Slicing& slicing) {
  return CallPlain(AnswerServerInfo, context, Cut(request, slicing));
}

WholeAnswer CallBenchmark(const ServiceContext& context,
                          const std::string& request, const Slicing& slicing) {
  EagerStream stream;
  BenchmarkRunner runner;
  const auto call = std::make_shared<BenchmarkCall>(context, runner, stream,
                                                    SteadyTime::max());
  call->Start(Cut(request, slicing));
  while (stream.WaitForWrite()) call->OnWritten(true);
  return stream.TakeAnswer();
}

WholeAnswer CallStream(const ServiceContext& context,
                       const std::vector<std::string>& requests,
                       const Slicing& slicing) {
  EagerStream stream;
  const auto call =
      std::make_shared<StreamCall>(context, stream, SteadyTime::max());
  call->Start();
  for (const std::string& request : requests) {
    if (!stream.TakeRead()) break;
    call->OnMessage(Cut(request, slicing));
    while (stream.TakeWrite()) call->OnWritten(true);
  }
  if (stream.TakeRead()) call->OnEnd();
  while (stream.WaitForWrite()) call->OnWritten(true);
  // A read that was started before the end of the call then completes at once.
  if (stream.TakeRead()) call->OnEnd();
  return stream.TakeAnswer();
}

}  // namespace attnd::server
