// Tests MemoryEstimate and GetServerInfo without gRPC, beside a busy decode
// thread.
#include "server/calls/plain_calls.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "attnd/v1/attention.pb.h"
#include "server/calls/decode_thread.h"
#include "tests/server/message_tools.h"

namespace attnd::server {
namespace {

using Answer = absl::StatusOr<OutgoingMessage>;

class PlainCallsTest : public ::testing::Test {
 protected:
  // Returns a request whose lists are so long that the decode thread decodes
  // it.
  static v1::MemoryEstimateRequest LongQuestion() {
    v1::MemoryEstimateRequest request;
    request.set_seq_len(4);
    request.set_batch(kMaxLightNumbers + 1);
    request.mutable_options()->mutable_key_lengths()->Resize(
        kMaxLightNumbers + 1, 1);
    return request;
  }

  template <typename Call>
  std::future<Answer> Ask(const Call& call,
                          const google::protobuf::Message& request) {
    auto promise = std::make_shared<std::promise<Answer>>();
    call(context_, 0, InSlices(request.SerializeAsString(), 5000, 1), stop_,
         [promise](Answer answer) { promise->set_value(std::move(answer)); });
    return promise->get_future();
  }

  static bool IsReady(const std::future<Answer>& answer) {
    return answer.wait_for(std::chrono::seconds(0)) ==
           std::future_status::ready;
  }

  // Keeps the decode thread busy until Release.
  void Block() {
    decoder_.Run(0, [this] { released_.get_future().wait(); });
  }
  void Release() { released_.set_value(); }

  AttentionEngine engine_{{.threads = 1}};
  Admission admission_{100LL << 20, 8};
  StopSignal stop_;
  std::promise<void> released_;
  DecodeThread decoder_;
  ServiceContext context_{.engine = engine_,
                          .admission = admission_,
                          .max_message_bytes = 16LL << 20,
                          .max_benchmark_vectors = 1024,
                          .decoder = &decoder_};
};

TEST_F(PlainCallsTest, AnswersAtOnceWhileALongQuestionWaits) {
  Block();
  std::future<Answer> estimate = Ask(AnswerMemoryEstimate, LongQuestion());
  EXPECT_FALSE(IsReady(estimate));
  EXPECT_EQ(admission_.usage().in_flight, 1);
  EXPECT_TRUE(IsReady(Ask(AnswerServerInfo, v1::GetServerInfoRequest())));
  v1::MemoryEstimateRequest question;
  question.set_seq_len(4);
  EXPECT_TRUE(IsReady(Ask(AnswerMemoryEstimate, question)));
  Release();
  const Answer answer = estimate.get();
  ASSERT_TRUE(answer.ok()) << answer.status();
  v1::MemoryEstimateResponse response;
  EXPECT_TRUE(response.ParseFromString(Join(*answer)));
  EXPECT_GT(response.flash_bytes(), 0);
}

TEST_F(PlainCallsTest, SaysHowFullAFullServerIs) {
  std::array<Admission::Reservation, 8> slots;
  for (Admission::Reservation& slot : slots) slot = *admission_.Admit(1);
  v1::MemoryEstimateRequest question;
  question.set_seq_len(4);
  EXPECT_EQ(
      RefusalOf(Ask(AnswerMemoryEstimate, question).get().status()).reason,
      "TOO_MANY_REQUESTS");
  const Answer answer = Ask(AnswerServerInfo, v1::GetServerInfoRequest()).get();
  ASSERT_TRUE(answer.ok()) << answer.status();
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(info.ParseFromString(Join(*answer)));
  EXPECT_EQ(info.memory_budget_bytes(), admission_.budget_bytes());
  EXPECT_EQ(admission_.usage().in_flight, 8);
  // Bytes in the message have to be admitted.
  std::promise<Answer> promise;
  AnswerServerInfo(
      context_, 0, InSlices("\x78\x01", 5000, 1), stop_,
      [&](const Answer& answered) { promise.set_value(answered); });
  EXPECT_EQ(RefusalOf(promise.get_future().get().status()).reason,
            "TOO_MANY_REQUESTS");
  // A server that drains refuses every call, whether it is full or not.
  admission_.Close();
  EXPECT_EQ(
      RefusalOf(
          Ask(AnswerServerInfo, v1::GetServerInfoRequest()).get().status())
          .reason,
      "DRAINING");
}

// Whoever admits a call makes room for it in the pool. This shows even a slot
// that was taken only for a moment.
TEST_F(PlainCallsTest, WatchingTheServerAdmitsNothing) {
  WorkspacePool pool;
  { const Workspace kept = pool.Reserve(1 << 20).value(); }
  const int64_t idle_bytes = pool.idle_bytes();
  Admission no_bytes(0, 1, &pool);
  const ServiceContext context{.engine = engine_, .admission = no_bytes};
  AnswerServerInfo(context, 0, ReceivedMessage(), stop_,
                   [](const Answer& answer) { EXPECT_TRUE(answer.ok()); });
  EXPECT_EQ(pool.idle_bytes(), idle_bytes);
  EXPECT_TRUE(no_bytes.Admit(0).ok());
  EXPECT_EQ(pool.idle_bytes(), 0);
}

TEST_F(PlainCallsTest, WatchingTheServerNeverCompetesForASlot) {
  constexpr int kTimes = 50'000;
  Admission one_slot(1 << 20, 1);
  const ServiceContext context{.engine = engine_, .admission = one_slot};
  // Both sides go on until each has tried kTimes, so that they run at the same
  // time.
  std::atomic<int> calls = 0;
  std::atomic<int> answers = 0;
  int refused_calls = 0;
  int refused_answers = 0;
  std::thread other([&] {
    while (calls < kTimes || answers < kTimes) {
      if (!one_slot.Admit(1).ok()) ++refused_calls;
      ++calls;
    }
  });
  while (calls < kTimes || answers < kTimes) {
    AnswerServerInfo(context, 0, ReceivedMessage(), stop_,
                     [&](const Answer& answer) {
                       if (!answer.ok()) ++refused_answers;
                       ++answers;
                     });
  }
  other.join();
  EXPECT_EQ(refused_answers, 0);
  EXPECT_EQ(refused_calls, 0);
}

// When a client has the answer, its slot and its bytes must be free.
TEST_F(PlainCallsTest, GivesEverythingBackBeforeItAnswers) {
  std::promise<Admission::Usage> usage;
  AnswerMemoryEstimate(
      context_, 0, InSlices(LongQuestion().SerializeAsString(), 5000, 1), stop_,
      [&](const Answer&) { usage.set_value(admission_.usage()); });
  const Admission::Usage then = usage.get_future().get();
  EXPECT_EQ(then.in_flight, 0);
  EXPECT_EQ(then.bytes, 0);
}

TEST_F(PlainCallsTest, DoesNotAnswerWhatWasCancelledWhileItWaited) {
  Block();
  std::future<Answer> estimate = Ask(AnswerMemoryEstimate, LongQuestion());
  stop_.Cancel();
  Release();
  EXPECT_EQ(RefusalOf(estimate.get().status()).reason, "CANCELLED");
  EXPECT_EQ(admission_.usage().reservations, 0);
}

TEST_F(PlainCallsTest, RefusesAtOnceWhatNeedsNoDecoding) {
  Block();
  auto promise = std::make_shared<std::promise<Answer>>();
  std::string fields;
  for (int64_t i = 0; i <= kMaxFields; ++i) fields += "\x78\x01";
  AnswerServerInfo(
      context_, 0, InSlices(fields, 5000, 1), stop_,
      [promise](Answer answer) { promise->set_value(std::move(answer)); });
  std::future<Answer> answer = promise->get_future();
  ASSERT_TRUE(IsReady(answer));
  EXPECT_EQ(RefusalOf(answer.get().status()).reason, "TOO_MANY_FIELDS");
  EXPECT_EQ(admission_.usage().reservations, 0);
  Release();
}

}  // namespace
}  // namespace attnd::server
