// A whole forward call without gRPC: bytes in, bytes out, memory counted.
#include "server/attention_call.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "core/reference_attention.h"
#include "tests/server/message_tools.h"

namespace attnd::server {
namespace {

using Answer = absl::StatusOr<ResponsePieces>;

class AttentionCallTest : public ::testing::Test {
 protected:
  std::shared_ptr<AttentionCall> Make(
      Admission& admission, SteadyTime deadline = SteadyTime::max(),
      ForwardMethod method = ForwardMethod::kAttention,
      int64_t max_message_bytes = 1LL << 30) {
    context_ = std::make_unique<ServiceContext>(
        ServiceContext{engine_, admission, max_message_bytes, 1});
    return std::make_shared<AttentionCall>(*context_, method, deadline);
  }

  static std::future<Answer> Start(AttentionCall& call,
                                   const google::protobuf::Message& request) {
    auto promise = std::make_shared<std::promise<Answer>>();
    call.Start(
        InSlices(request.SerializeAsString(), 5000, 1),
        [promise](Answer answer) { promise->set_value(std::move(answer)); });
    return promise->get_future();
  }

  static v1::AttentionResponse Parse(const Answer& answer) {
    v1::AttentionResponse response;
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (answer.ok()) {
      EXPECT_TRUE(response.ParseFromString(Join(*answer)));
    }
    return response;
  }

  // A request that computes for minutes.
  static v1::SelfAttentionRequest Endless() {
    v1::SelfAttentionRequest request;
    *request.mutable_sequence() = DataTensor({1 << 20, 1}, 1);
    return request;
  }

  AttentionEngine engine_{{.threads = 2}};
  Admission admission_{1LL << 30, 8};
  std::unique_ptr<ServiceContext> context_;
};

std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> floats(bytes.size() / sizeof(float));
  std::memcpy(floats.data(), bytes.data(), bytes.size());
  return floats;
}

TEST_F(AttentionCallTest, AnswersWhatTheOracleSays) {
  v1::AttentionRequest request = GoodAttention();
  request.mutable_options()->set_return_lse(true);
  const auto call = Make(admission_);
  const auto response = Parse(Start(*call, request).get());
  const auto problem =
      AttentionProblem::Create({.shape = {2, 4, 5, 8}}, {.shape = {2, 2, 7, 8}},
                               {.shape = {2, 2, 7, 3}}, {.return_lse = true});
  const auto query = Floats(request.query().data());
  const auto key = Floats(request.key().data());
  const auto value = Floats(request.value().data());
  std::vector<double> output(2 * 4 * 5 * 3);
  std::vector<double> lse(2 * 4 * 5);
  ReferenceAttention(*problem, query.data(), key.data(), value.data(),
                     output.data(), lse.data());
  const auto got = Floats(response.output().data());
  ASSERT_EQ(got.size(), output.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], output[i], 1e-5);
  }
  const auto got_lse = Floats(response.lse().data());
  ASSERT_EQ(got_lse.size(), lse.size());
  for (size_t i = 0; i < lse.size(); ++i) EXPECT_NEAR(got_lse[i], lse[i], 1e-5);
}

TEST_F(AttentionCallTest, SharedTensorsAreCopiedOnceAndMeanTheSame) {
  const v1::Tensor q = DataTensor({6, 8}, 1);
  const v1::Tensor kv = DataTensor({9, 8}, 2);
  v1::AttentionRequest plain;
  *plain.mutable_query() = q;
  *plain.mutable_key() = kv;
  *plain.mutable_value() = kv;
  v1::CrossAttentionRequest cross;
  *cross.mutable_queries() = q;
  *cross.mutable_kv_sequence() = kv;
  const auto one = Make(admission_);
  const std::string expected = Parse(Start(*one, plain).get()).output().data();
  const auto two =
      Make(admission_, SteadyTime::max(), ForwardMethod::kCrossAttention);
  EXPECT_EQ(Parse(Start(*two, cross).get()).output().data(), expected);
}

TEST_F(AttentionCallTest, SharedTensorsAreReservedOnce) {
  const TensorSpec spec{.shape = {1, 1, 3000, 64}};
  const auto problem = AttentionProblem::Create(spec, spec, spec, {});
  const auto estimate = engine_.estimator().Estimate(*problem);
  const int64_t tensor = problem->query_bytes();
  v1::SelfAttentionRequest self;
  *self.mutable_sequence() = DataTensor({3000, 64}, 1);
  Admission for_one(estimate->flash_bytes - 2 * tensor + tensor / 2, 1);
  const auto one =
      Make(for_one, SteadyTime::max(), ForwardMethod::kSelfAttention);
  Parse(Start(*one, self).get());
  v1::CrossAttentionRequest cross;
  *cross.mutable_queries() = DataTensor({3000, 64}, 1);
  *cross.mutable_kv_sequence() = DataTensor({3000, 64}, 2);
  Admission for_two(estimate->flash_bytes - tensor + tensor / 2, 1);
  const auto two =
      Make(for_two, SteadyTime::max(), ForwardMethod::kCrossAttention);
  Parse(Start(*two, cross).get());
}

// MemoryEstimate says what fits, so that much must do.
TEST_F(AttentionCallTest, ThePeakThatIsEstimatedIsEnough) {
  const TensorSpec spec{.shape = {1, 1, 3000, 64}};
  const auto problem = AttentionProblem::Create(spec, spec, spec, {});
  const auto estimate = engine_.estimator().Estimate(*problem);
  Admission exact(InlineFootprint(*estimate)->peak_per_request_bytes, 1);
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({3000, 64}, 1);
  *request.mutable_key() = DataTensor({3000, 64}, 2);
  *request.mutable_value() = DataTensor({3000, 64}, 3);
  const auto call = Make(exact);
  Parse(Start(*call, request).get());
}

TEST_F(AttentionCallTest, GivesBackEverythingOnceTheAnswerIsGone) {
  auto call = Make(admission_);
  {
    const Answer answer = Start(*call, GoodAttention()).get();
    call.reset();
    ASSERT_TRUE(answer.ok());
    EXPECT_EQ(admission_.usage().in_flight, 1);
    // The engine's own reference goes when its callback returns.
  }
  EXPECT_TRUE(admission_.WaitIdle(std::chrono::seconds(60)));
  EXPECT_EQ(admission_.usage().bytes, 0);
}

TEST_F(AttentionCallTest, EmptyProblemsHaveEmptyAnswers) {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({0, 4}, 1);
  *request.mutable_key() = DataTensor({3, 4}, 1);
  *request.mutable_value() = DataTensor({3, 5}, 1);
  const auto call = Make(admission_);
  const auto response = Parse(Start(*call, request).get());
  EXPECT_EQ(response.output().shape(0), 0);
  EXPECT_EQ(response.output().shape(1), 5);
  EXPECT_EQ(response.output().payload_case(), v1::Tensor::kData);
}

TEST_F(AttentionCallTest, RefusesWhatNeverFits) {
  Admission tight(100'000, 8);
  v1::SelfAttentionRequest request;
  *request.mutable_sequence() = DataTensor({300, 64}, 1);
  const auto call =
      Make(tight, SteadyTime::max(), ForwardMethod::kSelfAttention);
  const Refusal refusal = RefusalOf(Start(*call, request).get().status());
  EXPECT_EQ(refusal.reason, "MEMORY_BUDGET");
  EXPECT_EQ(refusal.retry_ms, -1);
}

TEST_F(AttentionCallTest, AdvisesToRetryWhatDoesNotFitNow) {
  Admission busy(10'000'000, 8);
  const auto held = busy.Admit(9'950'000);
  v1::SelfAttentionRequest request;
  *request.mutable_sequence() = DataTensor({300, 64}, 1);
  const auto call =
      Make(busy, SteadyTime::max(), ForwardMethod::kSelfAttention);
  const Refusal refusal = RefusalOf(Start(*call, request).get().status());
  EXPECT_EQ(refusal.reason, "MEMORY_BUDGET");
  EXPECT_GT(refusal.retry_ms, 0);
}

TEST_F(AttentionCallTest, RefusesAnAnswerAboveTheMessageLimit) {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({1000, 1}, 1);
  *request.mutable_key() = DataTensor({1, 1}, 1);
  *request.mutable_value() = DataTensor({1, 100}, 1);
  const auto call =
      Make(admission_, SteadyTime::max(), ForwardMethod::kAttention, 100'000);
  const Refusal refusal = RefusalOf(Start(*call, request).get().status());
  EXPECT_EQ(refusal.code,
            static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(refusal.reason, "MESSAGE_TOO_LARGE");
}

TEST_F(AttentionCallTest, CancelStopsWhatRuns) {
  const auto call =
      Make(admission_, SteadyTime::max(), ForwardMethod::kSelfAttention);
  std::future<Answer> answer = Start(*call, Endless());
  EXPECT_EQ(answer.wait_for(std::chrono::milliseconds(100)),
            std::future_status::timeout);
  call->Cancel();
  EXPECT_EQ(RefusalOf(answer.get().status()).reason, "CANCELLED");
}

TEST_F(AttentionCallTest, DeadlinesStopWhatRunsAndWhatHasNotBegun) {
  const auto late =
      Make(admission_,
           std::chrono::steady_clock::now() + std::chrono::milliseconds(50),
           ForwardMethod::kSelfAttention);
  EXPECT_EQ(RefusalOf(Start(*late, Endless()).get().status()).reason,
            "DEADLINE_EXCEEDED");
  const auto expired = Make(admission_, std::chrono::steady_clock::now(),
                            ForwardMethod::kSelfAttention);
  EXPECT_EQ(RefusalOf(Start(*expired, Endless()).get().status()).reason,
            "DEADLINE_EXCEEDED");
}

TEST_F(AttentionCallTest, MalformedMessagesAreRefused) {
  const auto call = Make(admission_);
  auto promise = std::make_shared<std::promise<Answer>>();
  call->Start(InSlices("\x0a\x05", 10, 1), [promise](Answer answer) {
    promise->set_value(std::move(answer));
  });
  const Answer answer = promise->get_future().get();
  EXPECT_EQ(RefusalOf(answer.status()).reason, "MALFORMED_MESSAGE");
}

}  // namespace
}  // namespace attnd::server
