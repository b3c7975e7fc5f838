// Tests calls that are too large for one message. The client streams them
// without being told to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <future>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "client/attention_client.h"
#include "tests/client/error_status.h"
#include "tests/client/fake_server.h"

namespace attnd::client {
namespace {

using ::testing::ElementsAre;

using Reply = absl::StatusOr<AttentionReply>;

// A server with a small limit for messages. It counts how often clients ask for
// its limits.
class LimitedHandler : public FakeHandler {
 public:
  WireReply OnServerInfo(v1::GetServerInfoResponse* response) override {
    ++asked;
    FakeHandler::OnServerInfo(response);
    response->set_max_receive_message_bytes(limit_bytes);
    response->set_max_send_message_bytes(limit_bytes);
    if (!streams) response->clear_features();
    const std::lock_guard lock(mutex_);
    return info_reply_;
  }

  // Refuses what a server with these limits refuses.
  WireReply OnAttention(const FakeCall& call,
                        v1::AttentionResponse* response) override {
    if (call.method == "AttentionStream") {
      if (!streams) return {.code = 12, .message = "unknown method"};
    } else {
      size_t bytes = 0;
      for (const v1::Tensor& tensor : call.tensors) {
        bytes += tensor.data().size();
      }
      if (streams && bytes > static_cast<size_t>(limit_bytes)) {
        return {.code = 8, .message = "Received message larger than max"};
      }
    }
    return FakeHandler::OnAttention(call, response);
  }

  void AnswerInfo(WireReply reply) {
    const std::lock_guard lock(mutex_);
    info_reply_ = std::move(reply);
  }

  std::atomic<int> asked = 0;
  std::atomic<int64_t> limit_bytes = 100'000;
  std::atomic<bool> streams = true;

 private:
  std::mutex mutex_;
  WireReply info_reply_;
};

// Has tensors of 125 KB each: the query, and one that is both key and value.
// The answer also has 125 KB.
struct LargeProblem {
  static constexpr int64_t kRows = 500, kDim = 64;
  std::vector<float> q = std::vector<float>(kRows * kDim);
  std::vector<float> kv = std::vector<float>(kRows * kDim);
  std::vector<uint8_t> mask = std::vector<uint8_t>(kRows, 1);
  std::vector<float> output = std::vector<float>(kRows * kDim, -1);
  std::vector<float> lse = std::vector<float>(kRows, -1);

  LargeProblem() {
    std::iota(q.begin(), q.end(), 0.F);
    std::iota(kv.begin(), kv.end(), 0.5F);
  }
  AttentionInputs inputs() const {
    return {.query = {q, {kRows, kDim}},
            .key = {kv, {kRows, kDim}},
            .value = {kv, {kRows, kDim}}};
  }
  AttentionOutputs outputs() { return {.output = output, .lse = lse}; }
  AttentionOptions options() const {
    return {.scale = 0.5F, .mask = ConstTensor{mask, {kRows}}};
  }
  // Checks that the outputs are those of the fake server.
  void ExpectAnswered() const {
    EXPECT_EQ(output[0], 0);
    EXPECT_EQ(output.back(), float(output.size() - 1));
    EXPECT_EQ(lse.back(), -float(lse.size() - 1));
  }
};

std::string BytesOf(const std::vector<float>& floats) {
  std::string bytes(floats.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), floats.data(), bytes.size());
  return bytes;
}

class LargeCallTest : public testing::Test {
 protected:
  void ExpectSent(const LargeProblem& problem, const char* method) const {
    const std::vector<FakeCall> calls = handler_.calls();
    ASSERT_EQ(calls.size(), 1U);
    EXPECT_EQ(calls[0].method, method);
    EXPECT_EQ(calls[0].tensors[0].data(), BytesOf(problem.q));
    EXPECT_EQ(calls[0].tensors[1].data(), BytesOf(problem.kv));
    EXPECT_EQ(calls[0].tensors[2].data(), BytesOf(problem.kv));
    EXPECT_EQ(calls[0].options.mask().data(),
              std::string(problem.mask.size(), '\1'));
    EXPECT_EQ(calls[0].options.scale(), 0.5F);
    EXPECT_TRUE(calls[0].options.return_lse());
  }

  LimitedHandler handler_;
  FakeServer server_{&handler_};
  AttentionClient client_{{.target = server_.target()}};
};

TEST_F(LargeCallTest, StreamsWhatTheServerTakesInNoMessage) {
  LargeProblem problem;
  const Reply reply =
      client_.Attention(problem.inputs(), problem.outputs(), problem.options());
  ASSERT_TRUE(reply.ok()) << reply.status();
  problem.ExpectAnswered();
  EXPECT_THAT(reply->output_shape, ElementsAre(500, 64));
  EXPECT_THAT(reply->lse_shape, ElementsAre(500));
  EXPECT_FALSE(reply->stats.isa.empty());
  ExpectSent(problem, "AttentionStream");
}

TEST_F(LargeCallTest, StreamsWhatTheClientTakesInNoMessage) {
  handler_.limit_bytes = 1 << 30;
  const AttentionClient client(
      {.target = server_.target(), .max_message_bytes = 200'000});
  LargeProblem problem;
  const Reply reply =
      client.Attention(problem.inputs(), problem.outputs(), problem.options());
  ASSERT_TRUE(reply.ok()) << reply.status();
  ExpectSent(problem, "AttentionStream");
}

// The contract allows a server to send chunks that are larger than the limit of
// the client.
TEST(SmallClientTest, ReceivesTheLargestChunks) {
  class LargestChunks final : public LimitedHandler {
   public:
    size_t chunk_bytes() const override { return 1 << 20; }
  };
  LargestChunks handler;
  const FakeServer server(&handler);
  const AttentionClient client(
      {.target = server.target(), .max_message_bytes = 1000});
  constexpr int64_t kRows = 3 << 10, kDim = 128;  // the output has 1.5 MiB
  const std::vector<float> q(kRows), k(1), v(kDim);
  std::vector<float> output(kRows * kDim);
  const AttentionInputs inputs{
      .query = {q, {kRows, 1}}, .key = {k, {1, 1}}, .value = {v, {1, kDim}}};
  const Reply waited = client.Attention(inputs, {.output = output});
  ASSERT_TRUE(waited.ok()) << waited.status();
  EXPECT_EQ(output.back(), float(output.size() - 1));
  std::promise<Reply> done;
  client.AttentionAsync(inputs, {.output = output}, {},
                        [&](const Reply& reply) { done.set_value(reply); });
  EXPECT_EQ(done.get_future().get().status(), absl::OkStatus());
}

TEST_F(LargeCallTest, StreamsLargeAnswersToSmallRequests) {
  const std::vector<float> q(1000), k(1), v(100);
  std::vector<float> output(100'000);
  const Reply reply = client_.Attention(
      {.query = {q, {1000, 1}}, .key = {k, {1, 1}}, .value = {v, {1, 100}}},
      {.output = output});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(output.back(), 99'999);
  EXPECT_EQ(handler_.calls().at(0).method, "AttentionStream");
}

TEST_F(LargeCallTest, StreamsSharedTensorsOneByOne) {
  LargeProblem problem;
  const ConstTensor sequence{problem.q, {500, 64}};
  const ConstTensor other{problem.kv, {500, 64}};
  ASSERT_TRUE(client_.SelfAttention(sequence, problem.outputs()).ok());
  ASSERT_TRUE(client_.CrossAttention(sequence, other, problem.outputs()).ok());
  const std::vector<FakeCall> calls = handler_.calls();
  ASSERT_EQ(calls.size(), 2U);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(calls[0].tensors[i].data(), BytesOf(problem.q));
    EXPECT_EQ(calls[1].tensors[i].data(),
              BytesOf(i == 0 ? problem.q : problem.kv));
  }
}

TEST_F(LargeCallTest, AsksOnceAndOnlyForCallsThatAreNotSmall) {
  const std::vector<float> one(1);
  std::vector<float> small(1);
  LargeProblem problem;
  const auto call_small = [&] {
    return client_.Attention(
        {.query = {one, {1, 1}}, .key = {one, {1, 1}}, .value = {one, {1, 1}}},
        {.output = small});
  };
  ASSERT_TRUE(call_small().ok());
  EXPECT_EQ(handler_.asked, 0);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(client_.Attention(problem.inputs(), problem.outputs()).ok());
    // A copy of the client shares its connection and what it knows about the
    // server.
    ASSERT_TRUE(client_.WithDeadline(absl::Seconds(50))
                    .Attention(problem.inputs(), problem.outputs())
                    .ok());
    ASSERT_TRUE(call_small().ok());
  }
  EXPECT_EQ(handler_.asked, 1);
}

TEST_F(LargeCallTest, WhatFitsGoesInline) {
  handler_.limit_bytes = 1 << 20;
  LargeProblem problem;
  ASSERT_TRUE(
      client_.Attention(problem.inputs(), problem.outputs(), problem.options())
          .ok());
  ExpectSent(problem, "Attention");
}

TEST_F(LargeCallTest, AsksAgainWhereAnotherServerTookThePlace) {
  LargeProblem problem;
  const auto call = [&] {
    return client_.Attention(problem.inputs(), problem.outputs()).status();
  };
  const auto start = [&] {
    std::promise<absl::Status> done;
    client_.AttentionAsync(
        problem.inputs(), problem.outputs(), {},
        [&](const Reply& reply) { done.set_value(reply.status()); });
    return done.get_future().get();
  };
  handler_.limit_bytes = 1 << 20;
  EXPECT_TRUE(call().ok());
  handler_.limit_bytes = 100'000;
  EXPECT_TRUE(call().ok());
  handler_.streams = false;
  EXPECT_TRUE(call().ok());
  EXPECT_EQ(handler_.asked, 3);
  // An asynchronous call is not sent again. The next call uses the new limits.
  handler_.streams = true;
  EXPECT_EQ(start().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(start().ok());
  EXPECT_EQ(handler_.asked, 4);
}

TEST_F(LargeCallTest, ARefusalByTheSameServerIsTheCallsError) {
  class Refusing : public LimitedHandler {
   public:
    WireReply OnAttention(const FakeCall& call,
                          v1::AttentionResponse* response) override {
      LimitedHandler::OnAttention(call, response);
      const std::lock_guard lock(mutex_);
      return refusal_;
    }
    // Makes calls fail with RESOURCE_EXHAUSTED, either with this reason of
    // attnd or without a reason like an error of gRPC.
    void RefuseFor(const std::string& reason) {
      const std::lock_guard lock(mutex_);
      refusal_ = {.code = 8, .message = "no"};
      if (reason.empty()) return;
      refusal_.details = SerializedRefusal(reason, "query", "no");
    }

   private:
    std::mutex mutex_;
    WireReply refusal_;
  };
  Refusing handler;
  const FakeServer server(&handler);
  const AttentionClient client({.target = server.target()});
  LargeProblem problem;
  EXPECT_TRUE(client.Attention(problem.inputs(), problem.outputs()).ok());
  EXPECT_EQ(handler.asked, 1);
  size_t calls = 1;
  // The client asks for the limits again only if they can be the reason of the
  // error.
  for (const auto& [reason, asked] :
       {std::pair{"", 2}, {"MESSAGE_TOO_LARGE", 3}, {"MEMORY_BUDGET", 3}}) {
    SCOPED_TRACE(reason);
    handler.RefuseFor(reason);
    EXPECT_EQ(client.Attention(problem.inputs(), problem.outputs())
                  .status()
                  .message(),
              "no");
    EXPECT_EQ(handler.asked, asked);
    EXPECT_EQ(handler.calls().size(), ++calls);
  }
}

TEST_F(LargeCallTest, ServersThatDoNotStreamGetMessages) {
  handler_.streams = false;
  LargeProblem problem;
  ASSERT_TRUE(
      client_.Attention(problem.inputs(), problem.outputs(), problem.options())
          .ok());
  ExpectSent(problem, "Attention");
}

TEST_F(LargeCallTest, AServerThatCannotBeAskedIsTheCallsError) {
  handler_.AnswerInfo({.code = 14, .message = "draining"});
  const AttentionClient client(
      {.target = server_.target(), .retry = {.max_attempts = 1}});
  LargeProblem problem;
  EXPECT_EQ(
      client.Attention(problem.inputs(), problem.outputs()).status().message(),
      "draining");
  std::promise<Reply> done;
  client.AttentionAsync(problem.inputs(), problem.outputs(), {},
                        [&](const Reply& reply) { done.set_value(reply); });
  EXPECT_EQ(done.get_future().get().status().message(), "draining");
  // An old server supports neither the question nor streams.
  handler_.streams = false;
  handler_.AnswerInfo({.code = 12});
  EXPECT_TRUE(client_.Attention(problem.inputs(), problem.outputs()).ok());
}

TEST_F(LargeCallTest, AnAnswerThatDoesNotFitItsRoom) {
  LargeProblem problem;
  std::vector<float> room(problem.output.size() - 1);
  const Reply reply = client_.Attention(problem.inputs(), {.output = room});
  EXPECT_EQ(reply.status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(DetailsOf(reply.status()).field_violations.size(), 1U);
  EXPECT_EQ(DetailsOf(reply.status()).field_violations[0].field, "output");
}

// Only the first call asks for the limits. The inputs are destroyed before a
// call is over.
TEST_F(LargeCallTest, AsyncCallsStreamToo) {
  for (int i = 0; i < 2; ++i) {
    LargeProblem result;
    std::promise<Reply> done;
    {
      const LargeProblem inputs;
      client_.AttentionAsync(
          inputs.inputs(), result.outputs(), inputs.options(),
          [&](const Reply& reply) { done.set_value(reply); });
    }
    const Reply reply = done.get_future().get();
    ASSERT_TRUE(reply.ok()) << reply.status();
    result.ExpectAnswered();
    const FakeCall call = handler_.calls().at(static_cast<size_t>(i));
    EXPECT_EQ(call.method, "AttentionStream");
    EXPECT_EQ(call.tensors[2].data(), BytesOf(LargeProblem().kv));
  }
  EXPECT_EQ(handler_.asked, 1);
}

TEST_F(LargeCallTest, AsyncCallsOutliveTheirClient) {
  LargeProblem problem;
  std::promise<Reply> done;
  AttentionClient({.target = server_.target()})
      .SelfAttentionAsync({problem.q, {500, 64}}, problem.outputs(), {},
                          [&](const Reply& reply) { done.set_value(reply); });
  EXPECT_TRUE(done.get_future().get().ok());
}

// Blocks a call until the test ends.
class HeldHandler : public LimitedHandler {
 public:
  WireReply OnAttention(const FakeCall&, v1::AttentionResponse*) override {
    here.set_value();
    release.get_future().wait();
    return {.code = 1};
  }
  std::promise<void> here, release;
};

TEST(LargeCallStopTest, CancelEndsAStream) {
  HeldHandler handler;
  const FakeServer server(&handler);
  const AttentionClient client({.target = server.target()});
  LargeProblem problem;
  std::promise<Reply> done;
  const PendingCall call =
      client.AttentionAsync(problem.inputs(), problem.outputs(), {},
                            [&](const Reply& reply) { done.set_value(reply); });
  handler.here.get_future().wait();
  call.Cancel();
  EXPECT_EQ(done.get_future().get().status().code(),
            absl::StatusCode::kCancelled);
  handler.release.set_value();
}

TEST(LargeCallStopTest, ADeadlineEndsAStream) {
  HeldHandler handler;
  const FakeServer server(&handler);
  const AttentionClient client(
      {.target = server.target(), .deadline = absl::Seconds(2)});
  LargeProblem problem;
  EXPECT_EQ(
      client.Attention(problem.inputs(), problem.outputs()).status().code(),
      absl::StatusCode::kDeadlineExceeded);
  handler.release.set_value();
}

TEST(LargeCallStopTest, AServerThatIsGoneIsUnavailable) {
  LimitedHandler handler;
  auto server = std::make_unique<FakeServer>(&handler);
  const AttentionClient client(
      {.target = server->target(), .retry = {.max_attempts = 1}});
  LargeProblem problem;
  ASSERT_TRUE(client.Attention(problem.inputs(), problem.outputs()).ok());
  server.reset();
  EXPECT_EQ(
      client.Attention(problem.inputs(), problem.outputs()).status().code(),
      absl::StatusCode::kUnavailable);
  std::promise<Reply> done;
  client.AttentionAsync(problem.inputs(), problem.outputs(), {},
                        [&](const Reply& reply) { done.set_value(reply); });
  EXPECT_EQ(done.get_future().get().status().code(),
            absl::StatusCode::kUnavailable);
}

// Refuses a stream after its second chunk.
class ImpatientHandler : public LimitedHandler {
 public:
  WireReply OnChunk(int chunks) override {
    return chunks < 2 ? WireReply()
                      : WireReply{.code = 3, .message = "not such a chunk"};
  }
};

// Keys and values are larger than the windows of HTTP/2, so the client must
// wait with the third or a later chunk. The client has not read the header of
// the answer yet.
TEST(LargeCallStopTest, ARefusalMidUploadEndsTheCall) {
  constexpr int64_t kRows = 1 << 16, kDim = 64;
  ImpatientHandler handler;
  const FakeServer server(&handler);
  const AttentionClient client({.target = server.target()});
  const std::vector<float> q(kDim), kv(kRows * kDim);
  std::vector<float> output(kDim);
  const AttentionInputs inputs{.query = {q, {1, kDim}},
                               .key = {kv, {kRows, kDim}},
                               .value = {kv, {kRows, kDim}}};
  const Reply waited = client.Attention(inputs, {.output = output});
  EXPECT_EQ(waited.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(waited.status().message(), "not such a chunk");
  std::promise<Reply> done;
  client.AttentionAsync(inputs, {.output = output}, {},
                        [&](const Reply& reply) { done.set_value(reply); });
  const Reply called_back = done.get_future().get();
  EXPECT_EQ(called_back.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(called_back.status().message(), "not such a chunk");
}

}  // namespace
}  // namespace attnd::client
