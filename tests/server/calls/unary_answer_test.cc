#include "server/calls/unary_answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

namespace attnd::server {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::atomic<SteadyTime> fake_now{std::chrono::steady_clock::now()};
SteadyTime Now() { return fake_now; }
void Pass(seconds time) { fake_now = fake_now.load() + time; }

class FakeRpc : public SendingRpc {
 public:
  explicit FakeRpc(UnaryAnswer& answer) : answer_(answer) {}

  int64_t sent_bytes() override { return sent; }
  BreakFn MakeBreak() override {
    return [this](const std::string& why) {
      reasons.push_back(why);
      answer_.Over();  // as gRPC can do at once
    };
  }

  int64_t sent = 0;
  std::vector<std::string> reasons;

 private:
  UnaryAnswer& answer_;
};

TEST(UnaryAnswerTest, OneThatNobodyTakesIsEndedOnce) {
  UnaryAnswer answer(Now);
  FakeRpc rpc(answer);
  Pass(seconds(100));
  answer.EndIfSilent(seconds(10));  // nothing is sent yet
  answer.Begin(rpc);
  Pass(seconds(9));
  answer.EndIfSilent(seconds(10));
  EXPECT_THAT(rpc.reasons, IsEmpty());
  Pass(seconds(1));
  answer.EndIfSilent(seconds(10));
  answer.EndIfSilent(seconds(10));
  EXPECT_THAT(rpc.reasons, ElementsAre(HasSubstr("10s (--stream-idle-timeo")));
}

TEST(UnaryAnswerTest, OneThatIsOverIsLeftAlone) {
  UnaryAnswer answer(Now);
  {
    FakeRpc rpc(answer);
    answer.Begin(rpc);
    answer.Over();
  }
  Pass(seconds(100));
  answer.EndIfSilent(seconds(10));
}

TEST(UnaryAnswerTest, OneThatMovesGoesOn) {
  UnaryAnswer answer(Now);
  FakeRpc rpc(answer);
  answer.Begin(rpc);
  for (int i = 0; i < 5; ++i) {
    Pass(seconds(9));
    rpc.sent += kMinProgressBytes;
    answer.EndIfSilent(seconds(10));
    ASSERT_THAT(rpc.reasons, IsEmpty()) << i;
  }
  // A client that reads too little is ended.
  Pass(seconds(9));
  rpc.sent += kMinProgressBytes - 1;
  answer.EndIfSilent(seconds(10));
  EXPECT_THAT(rpc.reasons, IsEmpty());
  Pass(seconds(1));
  answer.EndIfSilent(seconds(10));
  EXPECT_EQ(rpc.reasons.size(), 1U);
}

}  // namespace
}  // namespace attnd::server
