#include "client/attention_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/client/error_status.h"
#include "tests/client/fake_server.h"
#include "tests/client/small_problem.h"

namespace attnd::client {
namespace {

using ::testing::ElementsAre;

using Reply = absl::StatusOr<AttentionReply>;

class AttentionClientTest : public testing::Test {
 protected:
  FakeHandler handler_;
  FakeServer server_{&handler_};
  AttentionClient client_{{.target = server_.target()}};
};

TEST_F(AttentionClientTest, SendsTensorsAndOptions) {
  SmallProblem problem;
  const Reply reply = client_.Attention(problem.inputs(), problem.outputs(),
                                        {.scale = 0.5f,
                                         .temperature = 2.0f,
                                         .block_size = 32,
                                         .causal = Causal::kBottomRight});
  ASSERT_TRUE(reply.ok()) << reply.status();

  const std::vector<FakeCall> calls = handler_.calls();
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_EQ(calls[0].method, "Attention");
  ASSERT_EQ(calls[0].tensors.size(), 3u);
  for (const v1::Tensor& tensor : calls[0].tensors) {
    EXPECT_EQ(tensor.dtype(), v1::DATA_TYPE_F32);
  }
  EXPECT_EQ(Floats(calls[0].tensors[0]), problem.q);
  EXPECT_THAT(calls[0].tensors[0].shape(), ElementsAre(2, 2));
  EXPECT_EQ(Floats(calls[0].tensors[1]), problem.k);
  EXPECT_THAT(calls[0].tensors[1].shape(), ElementsAre(3, 2));
  EXPECT_EQ(Floats(calls[0].tensors[2]), problem.v);
  EXPECT_THAT(calls[0].tensors[2].shape(), ElementsAre(3, 1));
  EXPECT_EQ(calls[0].options.scale(), 0.5f);
  EXPECT_EQ(calls[0].options.temperature(), 2.0f);
  EXPECT_EQ(calls[0].options.block_size(), 32);
  EXPECT_EQ(calls[0].options.causal(), v1::CAUSAL_BOTTOM_RIGHT);
  EXPECT_TRUE(calls[0].options.return_lse());
}

TEST_F(AttentionClientTest, SendsEveryOption) {
  SmallProblem problem;
  const std::vector<uint16_t> bias = {1, 2, 3};
  const std::vector<uint8_t> mask = {1, 0, 1};
  std::vector<uint16_t> output(2);
  const Reply reply =
      client_.Attention(problem.inputs(), {.output = {DataType::kBF16, output}},
                        {.layout = Layout::kBshd,
                         .query_offsets = {-7},
                         .window_left = 3,
                         .window_right = 0,
                         .logits_soft_cap = 50.0f,
                         .alibi_slopes = {0.5f},
                         .sink_logits = {-1.0f},
                         .bias = ConstTensor{{DataType::kF16, bias}, {1, 3}},
                         .mask = ConstTensor{mask, {3}},
                         .query_lengths = {2},
                         .key_lengths = {1},
                         .cu_seqlens_q = {0, 2},
                         .cu_seqlens_k = {0, 3},
                         .precision = Precision::kF32});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_THAT(output, ElementsAre(0, 1));
  const v1::AttentionOptions options = handler_.calls().at(0).options;
  EXPECT_EQ(options.layout(), v1::LAYOUT_BSHD);
  EXPECT_THAT(options.query_offsets(), ElementsAre(-7));
  EXPECT_EQ(options.window_left(), 3);
  EXPECT_TRUE(options.has_window_right());
  EXPECT_EQ(options.logits_soft_cap(), 50);
  EXPECT_THAT(options.alibi_slopes(), ElementsAre(0.5f));
  EXPECT_THAT(options.sink_logits(), ElementsAre(-1.0f));
  EXPECT_EQ(options.bias().dtype(), v1::DATA_TYPE_F16);
  EXPECT_THAT(options.bias().shape(), ElementsAre(1, 3));
  EXPECT_EQ(options.bias().data(), std::string("\1\0\2\0\3\0", 6));
  EXPECT_EQ(options.mask().dtype(), v1::DATA_TYPE_BOOL);
  EXPECT_EQ(options.mask().data(), std::string("\1\0\1", 3));
  EXPECT_THAT(options.query_lengths(), ElementsAre(2));
  EXPECT_THAT(options.key_lengths(), ElementsAre(1));
  EXPECT_THAT(options.cu_seqlens_q(), ElementsAre(0, 2));
  EXPECT_THAT(options.cu_seqlens_k(), ElementsAre(0, 3));
  EXPECT_EQ(options.precision(), v1::PRECISION_F32);
  EXPECT_EQ(options.output_dtype(), v1::DATA_TYPE_BF16);
}

TEST_F(AttentionClientTest, GradientsGoIntoTheSpans) {
  SmallProblem problem;
  std::vector<float> grad_query(4), grad_key(6), grad_value(3);
  const BackwardInputs inputs{.query = {problem.q, {2, 2}},
                              .key = {problem.k, {3, 2}},
                              .value = {problem.v, {3, 1}},
                              .output = {problem.output, {2, 1}},
                              .lse = {problem.lse, {2}},
                              .grad_output = {problem.output, {2, 1}}};
  const BackwardOutputs outputs{grad_query, grad_key, grad_value};
  const auto stats =
      client_.AttentionBackward(inputs, outputs, {.causal = Causal::kTopLeft});
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(stats->isa, "scalar");
  EXPECT_THAT(grad_query, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(grad_key, ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(grad_value, ElementsAre(0, 1, 2));
  const FakeCall call = handler_.calls().at(0);
  EXPECT_EQ(call.method, "AttentionBackward");
  ASSERT_EQ(call.tensors.size(), 6u);
  EXPECT_EQ(Floats(call.tensors[4]), problem.lse);
  EXPECT_EQ(call.options.causal(), v1::CAUSAL_TOP_LEFT);

  std::promise<absl::StatusOr<ExecutionStats>> done;
  client_.AttentionBackwardAsync(inputs, {grad_query, {}, grad_value}, {},
                                 [&](absl::StatusOr<ExecutionStats> result) {
                                   done.set_value(std::move(result));
                                 });
  const auto refused = done.get_future().get();
  EXPECT_EQ(DetailsOf(refused.status()).field_violations.at(0).field,
            "grad_key");
}

TEST_F(AttentionClientTest, BiasAndMaskCountTowardsTheLimit) {
  const AttentionClient client(
      {.target = server_.target(), .max_message_bytes = 1000});
  SmallProblem problem;
  const std::vector<float> bias(300);
  const Reply reply =
      client.Attention(problem.inputs(), {.output = problem.output},
                       {.bias = ConstTensor{bias, {300}}});
  EXPECT_EQ(DetailsOf(reply.status()).reason, "MESSAGE_TOO_LARGE");
}

TEST_F(AttentionClientTest, LeavesDefaultsToTheServer) {
  SmallProblem problem;
  ASSERT_TRUE(
      client_.Attention(problem.inputs(), {.output = problem.output}).ok());
  const v1::AttentionOptions options = handler_.calls().at(0).options;
  EXPECT_FALSE(options.has_scale());
  EXPECT_FALSE(options.has_temperature());
  EXPECT_FALSE(options.return_lse());
  EXPECT_EQ(options.causal(), v1::CAUSAL_UNSPECIFIED);
}

TEST_F(AttentionClientTest, WritesTheAnswerIntoTheSpans) {
  SmallProblem problem;
  const Reply reply = client_.Attention(problem.inputs(), problem.outputs());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_THAT(problem.output, ElementsAre(0, 1));
  EXPECT_THAT(problem.lse, ElementsAre(0, -1));
  EXPECT_THAT(reply->output_shape, ElementsAre(2, 1));
  EXPECT_THAT(reply->lse_shape, ElementsAre(2));
  EXPECT_EQ(reply->stats.isa, "scalar");
  EXPECT_EQ(reply->stats.threads, 3);
  EXPECT_EQ(reply->stats.queue_time, absl::Nanoseconds(500));
  EXPECT_EQ(reply->stats.compute_time, absl::Milliseconds(2250));
  EXPECT_EQ(reply->stats.flops, int64_t{1} << 40);
}

TEST_F(AttentionClientTest, SelfAndCrossUseTheirOwnMethods) {
  SmallProblem problem;
  std::vector<float> output(4);
  ASSERT_TRUE(
      client_.SelfAttention({problem.q, {2, 2}}, {.output = output}).ok());
  ASSERT_TRUE(client_
                  .CrossAttention({problem.q, {2, 2}}, {problem.k, {3, 2}},
                                  {.output = output})
                  .ok());
  const std::vector<FakeCall> calls = handler_.calls();
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0].method, "SelfAttention");
  EXPECT_EQ(Floats(calls[0].tensors.at(0)), problem.q);
  EXPECT_EQ(calls[1].method, "CrossAttention");
  EXPECT_EQ(Floats(calls[1].tensors.at(1)), problem.k);
  EXPECT_THAT(output, ElementsAre(0, 1, 2, 3));
}

TEST_F(AttentionClientTest, SendsAndReceivesEmptyTensors) {
  const Reply reply = client_.Attention(
      {.query = {{}, {0, 2}}, .key = {{}, {0, 2}}, .value = {{}, {0, 2}}},
      {.output = {}});
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_THAT(reply->output_shape, ElementsAre(0, 2));
  // A tensor without bytes must still be sent with a payload.
  EXPECT_TRUE(handler_.calls().at(0).tensors.at(0).has_data());
}

TEST_F(AttentionClientTest, RefusesSpansThatTheAnswerDoesNotFit) {
  SmallProblem problem;
  for (const size_t size : {0u, 1u, 3u}) {
    std::vector<float> output(size, 7);
    const Reply reply = client_.Attention(problem.inputs(), {.output = output});
    EXPECT_EQ(reply.status().code(), absl::StatusCode::kInvalidArgument);
    const ErrorDetails details = DetailsOf(reply.status());
    ASSERT_EQ(details.field_violations.size(), 1u);
    EXPECT_EQ(details.field_violations[0].field, "output");
    EXPECT_THAT(output, testing::Each(7));
  }
  std::vector<float> short_lse(1);
  const Reply reply = client_.Attention(
      problem.inputs(), {.output = problem.output, .lse = short_lse});
  EXPECT_EQ(DetailsOf(reply.status()).field_violations.at(0).field, "lse");
}

TEST_F(AttentionClientTest, RefusesMessagesAboveTheLimitBeforeSending) {
  const AttentionClient client(
      {.target = server_.target(), .max_message_bytes = 16});
  SmallProblem problem;
  const Reply reply =
      client.Attention(problem.inputs(), {.output = problem.output});
  EXPECT_EQ(reply.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(DetailsOf(reply.status()).reason, "MESSAGE_TOO_LARGE");
  EXPECT_TRUE(handler_.calls().empty());
}

// A server that does not support streams.
class NoStreamsHandler : public FakeHandler {
 public:
  WireReply OnServerInfo(v1::GetServerInfoResponse*) override { return {}; }
};

TEST(AttentionClientLimitTest, NeverReadsSpansBeyondTheLargestMessage) {
  NoStreamsHandler handler;
  const FakeServer server(&handler);
  // This address is not mapped, so reading any of the 4 GiB would crash.
  // NOLINTNEXTLINE(performance-no-int-to-ptr): nothing is mapped there
  const auto* nothing = reinterpret_cast<const float*>(uintptr_t{4096});
  const std::span<const float> huge(nothing, size_t{1} << 30);
  const AttentionClient client(
      {.target = server.target(),
       .max_message_bytes = std::numeric_limits<int64_t>::max()});
  EXPECT_EQ(client.SelfAttention({huge, {1 << 20, 1 << 10}}, {.output = {}})
                .status()
                .code(),
            absl::StatusCode::kResourceExhausted);
}

// Returns an error like the server does.
class RefusingHandler final : public FakeHandler {
 public:
  WireReply OnAttention(const FakeCall&, v1::AttentionResponse*) override {
    return {.code = 3,
            .message = "key.shape[1]: expected 2, got 3",
            .details = SerializedRefusal("INVALID_FIELD", "key.shape[1]",
                                         "expected 2, got 3")};
  }
};

TEST(AttentionClientErrorTest, CarriesTheServersDetails) {
  RefusingHandler handler;
  const FakeServer server(&handler);
  SmallProblem problem;
  const Reply reply = AttentionClient({.target = server.target()})
                          .Attention(problem.inputs(), problem.outputs());
  EXPECT_EQ(reply.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(reply.status().message(), "key.shape[1]: expected 2, got 3");
  const ErrorDetails details = DetailsOf(reply.status());
  EXPECT_EQ(details.reason, "INVALID_FIELD");
  EXPECT_EQ(details.domain, "attnd");
  ASSERT_EQ(details.field_violations.size(), 1u);
  EXPECT_EQ(details.field_violations[0].field, "key.shape[1]");
  EXPECT_EQ(details.field_violations[0].description, "expected 2, got 3");
}

TEST(AttentionClientErrorTest, SaysUnavailableWhereNobodyListens) {
  const AttentionClient client(
      {.target = "unix:" + testing::TempDir() + "nobody-listens-here",
       .retry = {.max_attempts = 1}});
  const auto info = client.GetServerInfo();
  EXPECT_EQ(info.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(DetailsOf(info.status()).reason, "");
}

// Returns answers that a correct server would not send.
class LyingHandler final : public FakeHandler {
 public:
  explicit LyingHandler(v1::Tensor output) : output_(std::move(output)) {}
  WireReply OnAttention(const FakeCall&,
                        v1::AttentionResponse* response) override {
    *response->mutable_output() = output_;
    return {};
  }
  WireReply OnBenchmark(
      const v1::BenchmarkRequest&,
      const std::function<bool(const v1::BenchmarkResponse&)>&) override {
    return {};
  }

 private:
  v1::Tensor output_;
};

TEST(AttentionClientErrorTest, RefusesAnswersThatContradictThemselves) {
  v1::Tensor good;
  good.set_dtype(v1::DATA_TYPE_F32);
  good.add_shape(2);
  good.set_data(std::string(8, '\0'));
  std::vector<v1::Tensor> bad(5, good);
  bad[0].set_dtype(v1::DATA_TYPE_F16);
  bad[1].set_data(std::string(9, '\0'));
  bad[2].set_shape(0, -2);
  bad[3].add_shape(int64_t{1} << 62);
  bad[4].clear_payload();
  std::vector<float> output(2);
  SmallProblem problem;
  for (const v1::Tensor& tensor : bad) {
    LyingHandler handler(tensor);
    const FakeServer server(&handler);
    const Reply reply = AttentionClient({.target = server.target()})
                            .Attention(problem.inputs(), {.output = output});
    EXPECT_EQ(DetailsOf(reply.status()).reason, "BAD_RESPONSE")
        << tensor.ShortDebugString();
  }
}

// Returns the transpose of each tensor, which has the same number of elements.
class TransposingHandler : public FakeHandler {
 public:
  WireReply OnAttention(const FakeCall& call,
                        v1::AttentionResponse* response) override {
    const WireReply reply = FakeHandler::OnAttention(call, response);
    Transpose(response->mutable_output());
    return reply;
  }
  WireReply OnBackward(const FakeCall& call,
                       v1::AttentionBackwardResponse* response) override {
    const WireReply reply = FakeHandler::OnBackward(call, response);
    Transpose(response->mutable_grad_key());
    return reply;
  }

 private:
  static void Transpose(v1::Tensor* tensor) {
    tensor->mutable_shape()->SwapElements(0, 1);
  }
};

TEST(AttentionClientErrorTest, RefusesAnswersOfAnotherShape) {
  TransposingHandler handler;
  const FakeServer server(&handler);
  const AttentionClient client({.target = server.target()});
  SmallProblem problem;
  const AttentionInputs inputs = problem.inputs();
  const AttentionOutputs outputs = problem.outputs();
  std::promise<Reply> done;
  client.AttentionAsync(inputs, outputs, {},
                        [&](Reply reply) { done.set_value(std::move(reply)); });
  for (const Reply& reply :
       {client.Attention(inputs, outputs), done.get_future().get()}) {
    EXPECT_EQ(DetailsOf(reply.status()).reason, "BAD_RESPONSE");
    EXPECT_EQ(reply.status().message(),
              "output: expected an answer of shape [2, 1], got [1, 2]");
  }

  std::vector<float> grad_query(4), grad_key(6), grad_value(3);
  const BackwardInputs backward{.query = {problem.q, {2, 2}},
                                .key = {problem.k, {3, 2}},
                                .value = {problem.v, {3, 1}},
                                .output = {problem.output, {2, 1}},
                                .lse = {problem.lse, {2}},
                                .grad_output = {problem.output, {2, 1}}};
  const BackwardOutputs gradients{grad_query, grad_key, grad_value};
  std::promise<absl::StatusOr<ExecutionStats>> backward_done;
  client.AttentionBackwardAsync(backward, gradients, {},
                                [&](absl::StatusOr<ExecutionStats> stats) {
                                  backward_done.set_value(std::move(stats));
                                });
  for (const auto& stats : {client.AttentionBackward(backward, gradients),
                            backward_done.get_future().get()}) {
    EXPECT_EQ(stats.status().message(),
              "grad_key: expected an answer of shape [3, 2], got [2, 3]");
  }
}

TEST(AttentionClientErrorTest, RefusesABenchmarkWithoutResult) {
  LyingHandler handler{v1::Tensor()};
  const FakeServer server(&handler);
  const auto result = AttentionClient({.target = server.target()})
                          .Benchmark({.num_vectors = 1}, nullptr);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
}

TEST(AttentionClientTransportTest, SpeaksOverAUnixSocket) {
  FakeHandler handler;
  const FakeServer server(&handler,
                          "unix:" + testing::TempDir() + "client_test.sock");
  SmallProblem problem;
  const Reply reply = AttentionClient({.target = server.target()})
                          .Attention(problem.inputs(), problem.outputs());
  EXPECT_TRUE(reply.ok()) << reply.status();
}

}  // namespace
}  // namespace attnd::client
