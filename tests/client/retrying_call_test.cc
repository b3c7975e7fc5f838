// Tests that calls of every kind are made again after they fail, with servers
// on real sockets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "client/attention_client.h"
#include "tests/client/error_status.h"
#include "tests/client/fake_server.h"
#include "tests/client/small_problem.h"

namespace attnd::client {
namespace {

using ::testing::AllOf;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::Not;

using Reply = absl::StatusOr<AttentionReply>;

WireReply Unavailable() { return {.code = 14, .message = "draining"}; }

WireReply Busy() {
  return {.code = 8,
          .message = "busy",
          .details = SerializedRefusal("TOO_MANY_REQUESTS", "", "busy",
                                       absl::Milliseconds(10))};
}

WireReply Cancelled() { return {.code = 1, .message = "the server ends"}; }

// Lets the next calls fail and answers the following ones.
class FlakyHandler : public FakeHandler {
 public:
  void FailNext(int calls, WireReply reply) {
    const std::lock_guard lock(mutex_);
    failures_left_ = calls;
    reply_ = std::move(reply);
  }
  // Returns how many calls have arrived, of any method and with any result.
  int came() const { return came_; }

  WireReply OnAttention(const FakeCall& call,
                        v1::AttentionResponse* response) override {
    if (auto failure = Failure()) return *failure;
    return FakeHandler::OnAttention(call, response);
  }
  WireReply OnBackward(const FakeCall& call,
                       v1::AttentionBackwardResponse* response) override {
    if (auto failure = Failure()) return *failure;
    return FakeHandler::OnBackward(call, response);
  }
  WireReply OnBenchmark(
      const v1::BenchmarkRequest& request,
      const std::function<bool(const v1::BenchmarkResponse&)>& write) override {
    if (auto failure = Failure()) return *failure;
    return FakeHandler::OnBenchmark(request, write);
  }
  WireReply OnMemoryEstimate(const v1::MemoryEstimateRequest& request,
                             v1::MemoryEstimateResponse* response) override {
    if (auto failure = Failure()) return *failure;
    return FakeHandler::OnMemoryEstimate(request, response);
  }
  WireReply OnServerInfo(v1::GetServerInfoResponse* response) override {
    if (auto failure = Failure()) return *failure;
    return FakeHandler::OnServerInfo(response);
  }

 private:
  std::optional<WireReply> Failure() {
    ++came_;
    const std::lock_guard lock(mutex_);
    if (failures_left_ == 0) return std::nullopt;
    --failures_left_;
    return reply_;
  }

  std::mutex mutex_;
  int failures_left_ = 0;
  WireReply reply_;
  std::atomic<int> came_ = 0;
};

// The tensors have 250 KB in total. A client whose messages are limited to 100
// KB streams them.
struct LargeProblem {
  static constexpr int64_t kRows = 500, kDim = 64;
  static constexpr int64_t kMaxMessageBytes = 100'000;
  std::vector<float> x = std::vector<float>(kRows * kDim);
  std::vector<float> output = std::vector<float>(kRows * kDim, -1);

  LargeProblem() { std::iota(x.begin(), x.end(), 0.F); }
  ConstTensor tensor() const { return {x, {kRows, kDim}}; }
};

// Returns short pauses, so that the tests are fast.
RetryPolicy Quick() {
  return {.initial_backoff = absl::Milliseconds(1),
          .max_backoff = absl::Milliseconds(20)};
}

// A way to make a call.
struct Way {
  const char* name;
  std::function<absl::Status(const AttentionClient&)> call;
  bool streams = false;
};

// Waits for the call that `start` starts. The inputs are destroyed when `start`
// returns.
template <typename Start>
absl::Status Wait(const Start& start) {
  std::promise<absl::Status> done;
  const PendingCall call =
      start([&done](const auto& reply) { done.set_value(reply.status()); });
  return done.get_future().get();
}

absl::Status CheckOutput(const absl::Status& status,
                         const std::vector<float>& output) {
  if (!status.ok()) return status;
  for (size_t i = 0; i < output.size(); ++i) {
    if (output[i] != static_cast<float>(i)) {
      return absl::DataLossError("the output is wrong");
    }
  }
  return status;
}

std::vector<Way> Ways() {
  return {{"waits",
           [](const AttentionClient& client) {
             SmallProblem p;
             const Reply reply = client.Attention(p.inputs(), p.outputs());
             return CheckOutput(reply.status(), p.output);
           }},
          {"async",
           [](const AttentionClient& client) {
             SmallProblem p;
             const absl::Status status = Wait([&](auto done) {
               return client.AttentionAsync(SmallProblem().inputs(),
                                            p.outputs(), {}, done);
             });
             return CheckOutput(status, p.output);
           }},
          {"streams",
           [](const AttentionClient& client) {
             LargeProblem p;
             const Reply reply =
                 client.SelfAttention(p.tensor(), {.output = p.output});
             return CheckOutput(reply.status(), p.output);
           },
           /*streams=*/true},
          {"streams async",
           [](const AttentionClient& client) {
             LargeProblem p;
             const absl::Status status = Wait([&](auto done) {
               return client.SelfAttentionAsync(LargeProblem().tensor(),
                                                {.output = p.output}, {}, done);
             });
             return CheckOutput(status, p.output);
           },
           /*streams=*/true},
          {"backward",
           [](const AttentionClient& client) {
             SmallProblem p;
             const ConstTensor row = {p.v, {3, 1}};
             std::vector<float> q(3), k(3), v(3);
             return client
                 .AttentionBackward({row, row, row, row, {p.v, {3}}, row},
                                    {q, k, v})
                 .status();
           }},
          {"backward async",
           [](const AttentionClient& client) {
             std::vector<float> q(3), k(3), v(3);
             return Wait([&](auto done) {
               const SmallProblem p;
               const ConstTensor row = {p.v, {3, 1}};
               return client.AttentionBackwardAsync(
                   {row, row, row, row, {p.v, {3}}, row}, {q, k, v}, {}, done);
             });
           }},
          {"benchmark",
           [](const AttentionClient& client) {
             return client.Benchmark({.num_vectors = 8}, nullptr).status();
           }},
          {"estimate",
           [](const AttentionClient& client) {
             return client.EstimateMemory({.seq_len = 8}).status();
           }},
          {"info", [](const AttentionClient& client) {
             return client.GetServerInfo().status();
           }}};
}

class EveryWayTest : public testing::TestWithParam<size_t> {
 protected:
  absl::Status Call(ClientOptions options) {
    if (way_.streams) {
      options.max_message_bytes = LargeProblem::kMaxMessageBytes;
    }
    return way_.call(AttentionClient(std::move(options)));
  }

  const Way way_ = Ways()[GetParam()];
};

TEST_P(EveryWayTest, IsMadeAgainWhereThatMayHelp) {
  for (const WireReply& failure : {Unavailable(), Busy(), Cancelled()}) {
    FlakyHandler handler;
    const FakeServer server(&handler);
    handler.FailNext(3, failure);
    std::atomic<int> retries = 0;
    EXPECT_EQ(Call({.target = server.target(),
                    .retry = Quick(),
                    .on_retry =
                        [&](const absl::Status& status) {
                          ++retries;
                          EXPECT_EQ(status.message(), failure.message);
                        }}),
              absl::OkStatus())
        << failure.message;
    EXPECT_EQ(retries, 3);
    // A stream also asks for the limits of the server.
    EXPECT_EQ(handler.came(), way_.streams ? 5 : 4);
  }
}

TEST_P(EveryWayTest, IsNotMadeAgainWhereThatCannotHelp) {
  const std::string never = SerializedRefusal("MEMORY_BUDGET", "", "too large");
  for (const WireReply& failure :
       {WireReply{.code = 8, .message = "too large", .details = never},
        WireReply{.code = 3, .message = "wrong"},
        WireReply{.code = 2, .message = "unknown"}}) {
    FlakyHandler handler;
    const FakeServer server(&handler);
    handler.FailNext(1000, failure);
    EXPECT_EQ(
        Call({.target = server.target(), .deadline = absl::InfiniteDuration()})
            .message(),
        failure.message);
    EXPECT_EQ(handler.came(), 1);
  }
}

TEST_P(EveryWayTest, EndsWithTheLastErrorAtItsDeadline) {
  FlakyHandler handler;
  const FakeServer server(&handler);
  handler.FailNext(1'000'000, Busy());
  const absl::Status status =
      Call({.target = server.target(), .deadline = absl::Seconds(1)});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("busy (tried "), HasSubstr("the deadline")));
  EXPECT_EQ(DetailsOf(status).reason, "TOO_MANY_REQUESTS");
}

// A caller can compute such a deadline after its own deadline has passed.
TEST_P(EveryWayTest, ADeadlineThatIsLongPastEndsTheCall) {
  FlakyHandler handler;
  const FakeServer server(&handler);
  for (const absl::Duration deadline :
       {-absl::Hours(1'000'000), -absl::InfiniteDuration()}) {
    EXPECT_EQ(Call({.target = server.target(), .deadline = deadline}).code(),
              absl::StatusCode::kDeadlineExceeded);
  }
}

TEST_P(EveryWayTest, ServersThatComeLaterAreFound) {
  FlakyHandler handler;
  const std::string target =
      "unix:" + testing::TempDir() + "late" + std::to_string(GetParam());
  std::promise<void> failed;
  std::atomic<bool> said = false;
  auto call = std::async(std::launch::async, [&] {
    return Call({.target = target, .on_retry = [&](const absl::Status& status) {
                   EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
                   if (!said.exchange(true)) failed.set_value();
                 }});
  });
  failed.get_future().wait();
  const FakeServer server(&handler, target);
  EXPECT_EQ(call.get(), absl::OkStatus());
}

TEST_P(EveryWayTest, SaysThatTheServiceConfigIsRefused) {
  FlakyHandler handler;
  const FakeServer server(&handler);
  for (const char* config :
       {"{", "no JSON", "[]", R"({"loadBalancingConfig": 3})",
        R"({"loadBalancingConfig": [{"no_such_policy": {}}]})",
        R"({"methodConfig": [{"name": [{}], "retryPolicy": {}}]})"}) {
    const absl::Status status =
        Call({.target = server.target(), .service_config = config});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << config;
    EXPECT_THAT(status.message(), HasSubstr("service_config: expected"));
    EXPECT_THAT(status.message(), HasSubstr(config));
    ASSERT_EQ(DetailsOf(status).field_violations.size(), 1U);
    EXPECT_EQ(DetailsOf(status).field_violations[0].field, "service_config");
  }
  EXPECT_EQ(handler.came(), 0);
}

INSTANTIATE_TEST_SUITE_P(, EveryWayTest,
                         testing::Range(size_t{0}, Ways().size()),
                         [](const auto& way) {
                           std::string name = Ways()[way.param].name;
                           std::replace(name.begin(), name.end(), ' ', '_');
                           return name;
                         });

TEST(RetryingCallTest, HealthIsAskedOnce) {
  const AttentionClient client(
      {.target = "unix:" + testing::TempDir() + "nobody-listens-here",
       .deadline = absl::InfiniteDuration()});
  const absl::Status status = client.CheckHealth().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), Not(HasSubstr("tried")));
}

TEST(RetryingCallTest, WhereNobodyListensTheLastErrorComesAtTheDeadline) {
  int retries = 0;
  const AttentionClient client(
      {.target = "unix:" + testing::TempDir() + "nobody-listens-here",
       .deadline = absl::Seconds(2),
       .on_retry = [&](const absl::Status&) { ++retries; }});
  const absl::Status status = client.GetServerInfo().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(
      status.message(),
      HasSubstr("(tried " + std::to_string(retries + 1) + " times within"));
  // After 0.1, 0.2, 0.4 and 0.8 s, or less often on a machine that is busy.
  EXPECT_THAT(retries, AllOf(Ge(1), Le(5)));
}

// Lets the first call fail and blocks the following ones.
class BlockingHandler final : public FakeHandler {
 public:
  WireReply OnAttention(const FakeCall&, v1::AttentionResponse*) override {
    if (!failed_.exchange(true)) return Unavailable();
    release.get_future().wait();
    return {};
  }
  std::promise<void> release;

 private:
  std::atomic<bool> failed_ = false;
};

TEST(RetryingCallTest, ADeadlineInAnAttemptSaysWhatFailedBefore) {
  BlockingHandler handler;
  const FakeServer server(&handler);
  const AttentionClient client(
      {.target = server.target(), .deadline = absl::Seconds(1)});
  SmallProblem p;
  const absl::Status status =
      client.Attention(p.inputs(), p.outputs()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), HasSubstr("UNAVAILABLE: draining"));
  handler.release.set_value();
}

// Refuses the first stream when its second chunk has arrived.
class StumblingHandler final : public FakeHandler {
 public:
  WireReply OnChunk(int chunks) override {
    if (chunks == 2 && !stumbled_.exchange(true)) return Unavailable();
    return {};
  }

 private:
  std::atomic<bool> stumbled_ = false;
};

TEST(RetryingCallTest, AStreamBeginsAgainFromItsStart) {
  LargeProblem p;
  const std::string bytes(reinterpret_cast<const char*>(p.x.data()),
                          p.x.size() * sizeof(float));
  for (const bool waits : {true, false}) {
    StumblingHandler handler;
    const FakeServer server(&handler);
    const AttentionClient client(
        {.target = server.target(),
         .max_message_bytes = LargeProblem::kMaxMessageBytes,
         .retry = Quick()});
    const AttentionOutputs outputs{.output = p.output};
    const absl::Status status =
        waits ? client.SelfAttention(p.tensor(), outputs).status()
              : Wait([&](auto done) {
                  return client.SelfAttentionAsync(LargeProblem().tensor(),
                                                   outputs, {}, done);
                });
    EXPECT_EQ(CheckOutput(status, p.output), absl::OkStatus());
    const FakeCall call = handler.calls().at(0);
    for (const v1::Tensor& tensor : call.tensors) {
      EXPECT_EQ(tensor.data(), bytes);
    }
  }
}

// If the inputs have been destroyed, the call must still be sent again with the
// same elements.
TEST(RetryingCallTest, AnAsyncCallKeepsWhatItSends) {
  FlakyHandler handler;
  const FakeServer server(&handler);
  handler.FailNext(2, Unavailable());
  const AttentionClient client({.target = server.target(), .retry = Quick()});
  // The client copies smaller tensors into the text of the message.
  std::vector<float> output(10'000);
  const absl::Status status = Wait([&](auto done) {
    std::vector<float> x(10'000, 7);
    const PendingCall call = client.SelfAttentionAsync(
        {x, {100, 100}}, {.output = output}, {}, done);
    std::fill(x.begin(), x.end(), -1.F);
    return call;
  });
  EXPECT_EQ(status, absl::OkStatus());
  EXPECT_EQ(Floats(handler.calls().at(0).tensors.at(0)),
            std::vector<float>(10'000, 7));
}

TEST(RetryingCallTest, ABenchmarkThatHasBegunIsNotMadeAgain) {
  class Breaking final : public FakeHandler {
   public:
    WireReply OnBenchmark(
        const v1::BenchmarkRequest&,
        const std::function<bool(const v1::BenchmarkResponse&)>& write)
        override {
      ++came;
      v1::BenchmarkResponse event;
      event.mutable_progress()->set_phase("prepare");
      write(event);
      return Unavailable();
    }
    std::atomic<int> came = 0;
  };
  Breaking handler;
  const FakeServer server(&handler);
  EXPECT_EQ(AttentionClient({.target = server.target(),
                             .deadline = absl::InfiniteDuration()})
                .Benchmark({.num_vectors = 8}, nullptr)
                .status()
                .message(),
            "draining");
  EXPECT_EQ(handler.came, 1);
}

// The pauses are so long that the test would not end if it had to wait for one.
TEST(RetryingCallTest, ABenchmarkIsStoppedInAPause) {
  FlakyHandler handler;
  const FakeServer server(&handler);
  handler.FailNext(1000, Unavailable());
  for (const bool in_pause : {true, false}) {
    std::stop_source stop;
    std::promise<void> paused;
    const AttentionClient client({.target = server.target(),
                                  .deadline = absl::InfiniteDuration(),
                                  .retry = {.initial_backoff = absl::Hours(1),
                                            .max_backoff = absl::Hours(1)},
                                  .on_retry = [&](const absl::Status&) {
                                    if (!in_pause) stop.request_stop();
                                    paused.set_value();
                                  }});
    auto call = std::async(std::launch::async, [&] {
      return client.Benchmark({.num_vectors = 8}, nullptr, stop.get_token())
          .status();
    });
    paused.get_future().wait();
    stop.request_stop();
    const absl::Status status = call.get();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
    EXPECT_THAT(status.message(), HasSubstr("UNAVAILABLE: draining"));
  }
  EXPECT_EQ(handler.came(), 2);
}

// Has a call that waits in a pause of an hour.
class PausedCallTest : public testing::TestWithParam<bool> {
 protected:
  PausedCallTest() {
    handler_.FailNext(1000, Unavailable());
    AttentionClient client(
        {.target = server_.target(),
         .deadline = absl::InfiniteDuration(),
         .max_message_bytes = streams_ ? LargeProblem::kMaxMessageBytes
                                       : ClientOptions().max_message_bytes,
         .retry = {.initial_backoff = pause_, .max_backoff = pause_},
         .on_retry = [this](const absl::Status&) { paused_.set_value(); }});
    call_ = client.SelfAttentionAsync(
        LargeProblem().tensor(), {.output = output_}, {},
        [this](const Reply& reply) { done_.set_value(reply.status()); });
    paused_.get_future().wait();
  }

  const bool streams_ = GetParam();
  const absl::Duration pause_ = absl::Hours(1);
  FlakyHandler handler_;
  FakeServer server_{&handler_};
  std::vector<float> output_ = LargeProblem().output;
  std::promise<void> paused_;
  std::promise<absl::Status> done_;
  PendingCall call_;
};

TEST_P(PausedCallTest, IsCancelled) {
  call_.Cancel();
  const absl::Status status = done_.get_future().get();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(status.message(), HasSubstr("UNAVAILABLE: draining"));
  call_.Cancel();
  EXPECT_EQ(handler_.came(), 1);
}

TEST_P(PausedCallTest, IsCancelledByManyAtOnce) {
  std::array<std::future<void>, 8> cancels;
  for (std::future<void>& cancel : cancels) {
    cancel = std::async(std::launch::async, [this] { call_.Cancel(); });
  }
  EXPECT_EQ(done_.get_future().get().code(), absl::StatusCode::kCancelled);
}

INSTANTIATE_TEST_SUITE_P(, PausedCallTest, testing::Bool(),
                         [](const auto& way) {
                           return way.param ? "streams" : "inline";
                         });

TEST(RetryingCallTest, OnRetryMayCancelTheCall) {
  FlakyHandler handler;
  const FakeServer server(&handler);
  handler.FailNext(1000, Unavailable());
  std::promise<PendingCall> started;
  std::shared_future<PendingCall> call = started.get_future().share();
  const AttentionClient client(
      {.target = server.target(),
       .deadline = absl::InfiniteDuration(),
       .on_retry = [call](const absl::Status&) { call.get().Cancel(); }});
  SmallProblem p;
  std::promise<absl::Status> done;
  started.set_value(client.AttentionAsync(
      p.inputs(), p.outputs(), {},
      [&](const Reply& reply) { done.set_value(reply.status()); }));
  EXPECT_EQ(done.get_future().get().code(), absl::StatusCode::kCancelled);
}

TEST(RetryingCallTest, ACallInAPauseOutlivesItsClient) {
  for (int i = 0; i < 20; ++i) {
    FlakyHandler handler;
    const FakeServer server(&handler);
    handler.FailNext(1, Unavailable());
    std::promise<void> paused;
    std::promise<absl::Status> done;
    SmallProblem p;
    {
      const AttentionClient client(
          {.target = server.target(),
           .retry = Quick(),
           .on_retry = [&](const absl::Status&) { paused.set_value(); }});
      client.AttentionAsync(
          p.inputs(), p.outputs(), {},
          [&](const Reply& reply) { done.set_value(reply.status()); });
      paused.get_future().wait();
    }
    EXPECT_EQ(done.get_future().get(), absl::OkStatus());
  }
}

// Another server takes the address while the first one's calls fail.
TEST(RetryingCallTest, AnotherServerTakesTheAddressOver) {
  FlakyHandler draining;
  draining.FailNext(1'000'000, Unavailable());
  auto first = std::make_unique<FakeServer>(&draining);
  const std::string target = first->target();
  std::promise<void> refused;
  std::atomic<bool> said = false;
  const AttentionClient client(
      {.target = target, .on_retry = [&](const absl::Status&) {
         if (!said.exchange(true)) refused.set_value();
       }});
  SmallProblem p;
  auto call = std::async(std::launch::async, [&] {
    return client.Attention(p.inputs(), p.outputs()).status();
  });
  refused.get_future().wait();
  first.reset();
  FakeHandler handler;
  const FakeServer second(&handler, target);
  ASSERT_EQ(second.target(), target);
  EXPECT_EQ(call.get(), absl::OkStatus());
  EXPECT_EQ(handler.calls().size(), 1U);
}

absl::Status CallOnce(const AttentionClient& client) {
  SmallProblem p;
  return client.Attention(p.inputs(), p.outputs()).status();
}

TEST(ServiceConfigTest, CallsTakeTurnsAndOutliveAServer) {
  FakeHandler handlers[2];
  auto first = std::make_unique<FakeServer>(&handlers[0]);
  const FakeServer second(&handlers[1]);
  const AttentionClient client(
      {.target = "ipv4:" + first->target() + "," + second.target()});
  // The first calls can be made before the client is connected to both servers.
  for (int i = 0; i < 1000 && handlers[0].calls().empty(); ++i) {
    ASSERT_EQ(CallOnce(client), absl::OkStatus());
  }
  for (int i = 0; i < 1000 && handlers[1].calls().empty(); ++i) {
    ASSERT_EQ(CallOnce(client), absl::OkStatus());
  }
  const size_t before[] = {handlers[0].calls().size(),
                           handlers[1].calls().size()};
  for (int i = 0; i < 10; ++i) ASSERT_EQ(CallOnce(client), absl::OkStatus());
  EXPECT_EQ(handlers[0].calls().size() - before[0], 5U);
  EXPECT_EQ(handlers[1].calls().size() - before[1], 5U);
  first.reset();
  for (int i = 0; i < 20; ++i) ASSERT_EQ(CallOnce(client), absl::OkStatus());
}

TEST(ServiceConfigTest, AnotherOneIsFollowed) {
  FakeHandler handlers[2];
  const FakeServer first(&handlers[0]);
  const FakeServer second(&handlers[1]);
  const AttentionClient client(
      {.target = "ipv4:" + first.target() + "," + second.target(),
       .service_config = R"({"loadBalancingConfig": [{"pick_first": {}}]})"});
  for (int i = 0; i < 20; ++i) ASSERT_EQ(CallOnce(client), absl::OkStatus());
  EXPECT_TRUE(handlers[0].calls().empty() || handlers[1].calls().empty());
}

TEST(ServiceConfigTest, ItsRetryPolicyWorksWithinEachAttempt) {
  FlakyHandler handler;
  const FakeServer server(&handler);
  ClientOptions options{.target = server.target(),
                        .retry = {.max_attempts = 1}};
  // The default service config is for other programs, so this client does not
  // use its retries.
  handler.FailNext(1000, Unavailable());
  EXPECT_EQ(CallOnce(AttentionClient(options)).message(), "draining");
  EXPECT_EQ(handler.came(), 1);
  options.service_config = R"({"methodConfig": [{
      "name": [{"service": "attnd.v1.AttentionService"}],
      "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.001s",
                      "maxBackoff": "0.01s", "backoffMultiplier": 2,
                      "retryableStatusCodes": ["UNAVAILABLE"]}}]})";
  EXPECT_EQ(CallOnce(AttentionClient(options)).message(), "draining");
  EXPECT_EQ(handler.came(), 1 + 3);
  options.retry = Quick();
  options.retry.max_attempts = 2;
  EXPECT_THAT(CallOnce(AttentionClient(options)).message(),
              HasSubstr("draining (tried 2 times"));
  EXPECT_EQ(handler.came(), 1 + 3 + 6);
}

// If gRPC refuses the target, the error must not blame the service config.
TEST(ServiceConfigTest, IsNotBlamedForTheTarget) {
  const AttentionClient client(
      {.target = "unix:",
       .deadline = absl::Milliseconds(10),
       .service_config = R"({"loadBalancingConfig": [{"round_robin": {}}]})"});
  EXPECT_NE(client.GetServerInfo().status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace attnd::client
