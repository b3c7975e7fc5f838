// Tests asynchronous calls: what they keep alive, and how they are stopped.
#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "client/attention_client.h"
#include "tests/client/fake_server.h"
#include "tests/client/small_problem.h"

namespace attnd::client {
namespace {

using Reply = absl::StatusOr<AttentionReply>;

class AsyncCallTest : public testing::Test {
 protected:
  FakeHandler handler_;
  FakeServer server_{&handler_};
  AttentionClient client_{{.target = server_.target()}};
};

TEST_F(AsyncCallTest, AsyncCallsRunAtOnce) {
  constexpr int kCalls = 32;
  std::vector<SmallProblem> problems(kCalls);
  std::vector<std::promise<Reply>> done(kCalls);
  for (size_t i = 0; i < kCalls; ++i) {
    // The inputs are destroyed before the call is over.
    const SmallProblem inputs;
    const auto finish = [&done, i](Reply reply) {
      done[i].set_value(std::move(reply));
    };
    if (i % 2 == 0) {
      client_.AttentionAsync(inputs.inputs(), problems[i].outputs(), {},
                             finish);
    } else {
      problems[i].output.resize(4);
      client_.CrossAttentionAsync({inputs.q, {2, 2}}, {inputs.k, {3, 2}},
                                  problems[i].outputs(), {}, finish);
    }
  }
  for (size_t i = 0; i < kCalls; ++i) {
    const Reply reply = done[i].get_future().get();
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(problems[i].output.at(1), 1);
    EXPECT_EQ(problems[i].lse.at(1), -1);
  }
  EXPECT_EQ(handler_.calls().size(), size_t{kCalls});
}

TEST_F(AsyncCallTest, AsyncCallOutlivesItsClient) {
  SmallProblem problem;
  std::promise<Reply> done;
  AttentionClient(ClientOptions{.target = server_.target()})
      .AttentionAsync(problem.inputs(), problem.outputs(), {},
                      [&](Reply reply) { done.set_value(std::move(reply)); });
  const Reply reply = done.get_future().get();
  EXPECT_TRUE(reply.ok()) << reply.status();
}

// Floats that are sent without a copy. A test can wait until they are
// destroyed.
struct OwnedFloats {
  explicit OwnedFloats(size_t size)
      : floats(new std::vector<float>(size, 2),
               [this](const std::vector<float>* ended) {
                 delete ended;
                 gone.set_value();
               }) {}

  ConstTensor Matrix() const {
    return {ConstElements(*floats).OwnedBy(floats),
            {static_cast<int64_t>(floats->size() / 64), 64}};
  }
  // Returns when gRPC has released them as well.
  void WaitUntilGone() {
    floats.reset();
    gone.get_future().get();
  }

  std::promise<void> gone;
  std::shared_ptr<const std::vector<float>> floats;
};

TEST_F(AsyncCallTest, SendsOwnedTensorsLargerThanAFrame) {
  OwnedFloats owned(1 << 20);
  std::vector<float> output(owned.floats->size());
  const Reply reply = client_.SelfAttention(owned.Matrix(), {.output = output});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(output.back(), static_cast<float>(output.size() - 1));
  EXPECT_EQ(Floats(handler_.calls().at(0).tensors.at(0)), *owned.floats);
  owned.WaitUntilGone();
}

TEST_F(AsyncCallTest, AnOwnerOutlivesACallThatIsCancelled) {
  OwnedFloats owned(16 << 20);
  std::vector<float> output(owned.floats->size());
  {
    std::promise<Reply> done;
    const PendingCall call = client_.SelfAttentionAsync(
        owned.Matrix(), {.output = output}, {},
        [&](Reply reply) { done.set_value(std::move(reply)); });
    call.Cancel();
    EXPECT_EQ(done.get_future().get().status().code(),
              absl::StatusCode::kCancelled);
  }
  owned.WaitUntilGone();
}

// There is no server in this process, so only the call keeps gRPC's callback
// threads alive. The call ends in one of these threads.
TEST(AsyncCallLifeTest, ACallMayBeTheLastToHoldTheConnection) {
  for (int i = 0; i < 50; ++i) {
    SmallProblem problem;
    std::promise<Reply> done;
    AttentionClient(ClientOptions{.target = "unix:/nobody/listens/here",
                                  .retry = {.max_attempts = 1}})
        .AttentionAsync(problem.inputs(), problem.outputs(), {},
                        [&](Reply reply) { done.set_value(std::move(reply)); });
    EXPECT_EQ(done.get_future().get().status().code(),
              absl::StatusCode::kUnavailable);
  }
}

// Blocks calls until the test releases them.
class BlockingHandler final : public FakeHandler {
 public:
  WireReply OnAttention(const FakeCall&, v1::AttentionResponse*) override {
    std::unique_lock lock(mutex_);
    entered_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return released_; });
    return {};
  }

  void WaitUntilEntered() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return entered_; });
  }

  void Release() {
    const std::lock_guard lock(mutex_);
    released_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool entered_ = false;
  bool released_ = false;
};

TEST(CallStopTest, CancelEndsAnAsyncCall) {
  BlockingHandler handler;
  const FakeServer server(&handler);
  const AttentionClient client({.target = server.target()});
  SmallProblem problem;
  std::promise<Reply> done;
  const PendingCall call = client.AttentionAsync(
      problem.inputs(), problem.outputs(), {},
      [&](Reply reply) { done.set_value(std::move(reply)); });
  handler.WaitUntilEntered();
  call.Cancel();
  EXPECT_EQ(done.get_future().get().status().code(),
            absl::StatusCode::kCancelled);
  call.Cancel();
  handler.Release();
}

TEST(CallStopTest, DeadlineEndsASyncCall) {
  BlockingHandler handler;
  const FakeServer server(&handler);
  const AttentionClient client({.target = server.target()});
  SmallProblem problem;
  const Reply reply = client.WithDeadline(absl::Milliseconds(50))
                          .Attention(problem.inputs(), problem.outputs());
  EXPECT_EQ(reply.status().code(), absl::StatusCode::kDeadlineExceeded);
  handler.Release();
}

}  // namespace
}  // namespace attnd::client
