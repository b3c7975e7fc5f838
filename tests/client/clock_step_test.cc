// Tests calls that continue while the clock of the system is set. Time
// synchronisation does this on a machine that has just started.
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <ctime>
#include <future>

#include "client/attention_client.h"
#include "tests/client/fake_server.h"
#include "tests/client/small_problem.h"

namespace {

// How far the clock of the system is behind, until the test corrects it. The
// clock is never ahead, because a thread that waits in the kernel for a time of
// day would then wait too long.
std::atomic<time_t> clock_lag_seconds = 0;

}  // namespace

// Replaces the function of the C library in this whole program.
extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const auto result = static_cast<int>(syscall(SYS_clock_gettime, clock, time));
  if (result == 0 && clock == CLOCK_REALTIME) {
    time->tv_sec -= clock_lag_seconds;
  }
  return result;
}

namespace attnd::client {
namespace {

// Lets the first calls fail.
class FlakyHandler final : public FakeHandler {
 public:
  WireReply OnAttention(const FakeCall& call,
                        v1::AttentionResponse* response) override {
    if (failures_left_.fetch_sub(1) > 0) {
      return {.code = 14, .message = "draining"};
    }
    return FakeHandler::OnAttention(call, response);
  }

 private:
  std::atomic<int> failures_left_ = 3;
};

// Returns the status of a call that is retried after the clock was set forward
// by an hour. `waits` says whether a thread waits for the call.
absl::Status CallAcrossStep(bool waits) {
  FlakyHandler handler;
  const FakeServer server(&handler);
  clock_lag_seconds = 3600;
  const AttentionClient client(
      {.target = server.target(),
       .deadline = absl::Minutes(1),
       .retry = {.initial_backoff = absl::Milliseconds(1)},
       .on_retry = [](const absl::Status&) { clock_lag_seconds = 0; }});
  SmallProblem p;
  if (waits) return client.Attention(p.inputs(), p.outputs()).status();
  std::promise<absl::Status> done;
  client.AttentionAsync(p.inputs(), p.outputs(), {}, [&](const auto& reply) {
    done.set_value(reply.status());
  });
  return done.get_future().get();
}

TEST(ClockStepTest, ACallOutlivesAClockThatIsSetForward) {
  for (const bool waits : {true, false}) {
    EXPECT_EQ(CallAcrossStep(waits), absl::OkStatus());
  }
}

}  // namespace
}  // namespace attnd::client
