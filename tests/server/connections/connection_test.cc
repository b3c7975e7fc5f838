#include "server/connections/connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <memory>
#include <string>

#include "base/unique_fd.h"
#include "tests/server/connections/frames.h"
#include "wire/message_sizes.h"

namespace attnd::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Verdict = Connection::Verdict;

constexpr seconds kReadTimeout{10};

class ConnectionTest : public ::testing::Test {
 protected:
  void Make(const ConnectionLimits& limits = {},
            const Rate& all_resets = {.burst = 1e6, .per_second = 0}) {
    std::array<int, 2> ends{};
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()),
              0);
    ours_ = UniqueFd(ends[0]);
    theirs_ = UniqueFd(ends[1]);
    totals_ = std::make_shared<ConnectionTotals>(all_resets);
    connection_ = std::make_unique<Connection>(ours_.get(), "unix:", limits,
                                               totals_, now_);
    ASSERT_EQ(Client(kPreface + Frame(FrameType::kSettings)), Verdict::kOk);
  }

  Verdict Client(const std::string& bytes) {
    return connection_->Received(bytes.data(), bytes.size(), now_);
  }
  void Server(const std::string& bytes) {
    connection_->Sent(bytes.data(), bytes.size());
  }
  std::string_view Overdue() {
    return connection_->Overdue(now_, kReadTimeout);
  }

  UniqueFd ours_;
  UniqueFd theirs_;
  SteadyTime now_ = SteadyTime{} + std::chrono::hours(1);
  std::shared_ptr<ConnectionTotals> totals_;
  std::unique_ptr<Connection> connection_;
};

TEST_F(ConnectionTest, CountsCallsUntilTheyAreAnswered) {
  Make();
  EXPECT_NE(connection_->idle_since(), SteadyTime::max());
  Client(Headers(1) + Headers(3) +
         Frame(FrameType::kData, FrameHeader::kEndStream, 1, "message"));
  EXPECT_EQ(connection_->open_calls(), 2);
  EXPECT_EQ(totals_->open_calls, 2);
  EXPECT_EQ(connection_->idle_since(), SteadyTime::max());
  Server(Headers(1));
  EXPECT_EQ(connection_->open_calls(), 2) << "the answer has only begun";
  Server(Frame(FrameType::kData, 0, 1, "answer") +
         Headers(1, FrameHeader::kEndStream));
  EXPECT_EQ(connection_->open_calls(), 1);
  Server(Frame(FrameType::kRstStream, 0, 3, "1234"));
  EXPECT_EQ(connection_->open_calls(), 0);
  EXPECT_EQ(totals_->open_calls, 0);
  EXPECT_NE(connection_->idle_since(), SteadyTime::max());
}

// Trailers from a client do not begin a call, and neither do stream numbers
// that were used before.
TEST_F(ConnectionTest, CountsACallOnce) {
  Make();
  Client(Headers(5) + Headers(5) + Headers(3));
  EXPECT_EQ(connection_->open_calls(), 1);
}

// gRPC ignores a call with an even number, and accepts lower numbers after it.
TEST_F(ConnectionTest, AnEvenNumberDoesNotHideLaterCalls) {
  Make({.resets = {.burst = 1, .per_second = 0}});
  Client(Headers(0x7ffffffe));
  EXPECT_EQ(connection_->open_calls(), 0);
  EXPECT_EQ(Client(Headers(1) + Headers(3)), Verdict::kOk);
  EXPECT_EQ(connection_->open_calls(), 2);
  EXPECT_EQ(Client(Reset(1) + Reset(3)), Verdict::kMustEnd);
}

TEST_F(ConnectionTest, EndsWhoOpensTooManyCalls) {
  Make({.open_calls = 3});
  EXPECT_EQ(Client(Headers(1) + Headers(3) + Headers(5)), Verdict::kOk);
  EXPECT_EQ(Client(Headers(7)), Verdict::kMustEnd);
  EXPECT_THAT(connection_->end_reason(), HasSubstr("more calls"));
  EXPECT_EQ(Client(Frame(FrameType::kPing)), Verdict::kMustEnd)
      << "nothing more may pass";
}

TEST_F(ConnectionTest, BoundsResetsAndForgivesThemInTime) {
  Make({.resets = {.burst = 10, .per_second = 5}});
  uint32_t stream = 1;
  const auto reset = [&] {
    const std::string both = Headers(stream) + Reset(stream);
    stream += 2;
    return Client(both);
  };
  for (int i = 0; i < 10; ++i) ASSERT_EQ(reset(), Verdict::kOk);
  now_ += seconds(1);
  for (int i = 0; i < 5; ++i) ASSERT_EQ(reset(), Verdict::kOk);
  EXPECT_EQ(reset(), Verdict::kMustEnd);
  EXPECT_THAT(connection_->end_reason(), HasSubstr("reset too many"));
}

TEST_F(ConnectionTest, DoesNotCountResetsOfWhatWasAnswered) {
  Make({.resets = {.burst = 1, .per_second = 0}});
  for (uint32_t stream = 1; stream < 100; stream += 2) {
    ASSERT_EQ(Client(Headers(stream)), Verdict::kOk);
    Server(Headers(stream, FrameHeader::kEndStream));
    ASSERT_EQ(Client(Reset(stream)), Verdict::kOk);
  }
}

// Attempts that the limit refuses must not make it refuse for longer.
TEST(RateLimitTest, ForgivesAFloodAsQuicklyAsABurst) {
  RateLimit limit({.burst = 10, .per_second = 5});
  SteadyTime now = SteadyTime{} + std::chrono::hours(1);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(limit.Take(now), i < 10) << i;
  EXPECT_EQ(limit.recent(now), 10);
  now += seconds(1);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(limit.Take(now), i < 5) << i;
  int taken = 0;
  for (int i = 0; i < 100; ++i) {
    now += milliseconds(10);
    if (limit.Take(now)) ++taken;
  }
  EXPECT_NEAR(taken, 5, 1) << "as many as ever, whoever else was refused";
}

TEST_F(ConnectionTest, SaysWhenAllConnectionsResetTooMuch) {
  Make({}, {.burst = 2, .per_second = 0});
  EXPECT_EQ(Client(Headers(1) + Reset(1) + Headers(3) + Reset(3)),
            Verdict::kOk);
  EXPECT_EQ(Client(Headers(5) + Reset(5)), Verdict::kTooManyResets);
}

TEST_F(ConnectionTest, BoundsABlockOfHeaders) {
  Make({.header_block_bytes = 1000});
  const std::string part(400, 'x');
  EXPECT_EQ(Client(Frame(FrameType::kHeaders, 0, 1, part) +
                   Frame(FrameType::kContinuation, 0, 1, part)),
            Verdict::kOk);
  EXPECT_EQ(Client(Frame(FrameType::kContinuation, 0, 1, part)),
            Verdict::kMustEnd);
  EXPECT_THAT(connection_->end_reason(), HasSubstr("headers"));
}

TEST_F(ConnectionTest, BoundsABlockOfEmptyFrames) {
  Make({.header_block_bytes = 1000});
  EXPECT_EQ(Client(Frame(FrameType::kHeaders, 0, 1)), Verdict::kOk);
  const std::string empty = Frame(FrameType::kContinuation, 0, 1);
  int taken = 0;
  while (taken < 1000 && Client(empty) == Verdict::kOk) ++taken;
  EXPECT_LT(taken, 1000 / static_cast<int>(FrameHeader::kBytes));
}

TEST_F(ConnectionTest, RefusesALargeBlockBeforeItArrives) {
  Make({.header_block_bytes = 1000});
  const std::string frame =
      Frame(FrameType::kHeaders, 0, 1, std::string(2000, 'x'));
  EXPECT_EQ(Client(frame.substr(0, FrameHeader::kBytes)), Verdict::kMustEnd);
}

TEST_F(ConnectionTest, LetsEachBlockBeginAnew) {
  Make({.header_block_bytes = 1000});
  for (uint32_t stream = 1; stream < 100; stream += 2) {
    ASSERT_EQ(Client(Headers(stream)), Verdict::kOk);
  }
}

TEST_F(ConnectionTest, BoundsPingsAndSettingsButNotTheirAnswers) {
  for (const FrameType type : {FrameType::kPing, FrameType::kSettings}) {
    Make({.answered_frames = {.burst = 5, .per_second = 1}});
    for (int i = 0; i < 100; ++i) {
      ASSERT_EQ(Client(Frame(type, FrameHeader::kAck)), Verdict::kOk);
    }
    for (int i = 0; i < 4; ++i) ASSERT_EQ(Client(Frame(type)), Verdict::kOk);
    EXPECT_EQ(Client(Frame(type)), Verdict::kMustEnd);
  }
}

TEST_F(ConnectionTest, BoundsAGoawayBeforeItArrives) {
  Make({.goaway_bytes = 1000});
  EXPECT_EQ(Client(Frame(FrameType::kGoaway, 0, 0, std::string(1000, 'x'))),
            Verdict::kOk);
  const std::string large =
      Frame(FrameType::kGoaway, 0, 0, std::string(1001, 'x'));
  EXPECT_EQ(Client(large.substr(0, FrameHeader::kBytes)), Verdict::kMustEnd);
  EXPECT_THAT(connection_->end_reason(), HasSubstr("GOAWAY"));
}

TEST_F(ConnectionTest, FindsACallWithoutItsMessage) {
  Make();
  Client(Headers(1));
  now_ += kReadTimeout - milliseconds(1);
  EXPECT_THAT(Overdue(), IsEmpty());
  now_ += milliseconds(1);
  EXPECT_THAT(Overdue(), HasSubstr("unfinished message"));
}

TEST_F(ConnectionTest, AByteNowAndThenIsNoProgress) {
  Make();
  Client(Headers(1));
  for (int i = 0; i < 10; ++i) {
    Client(Frame(FrameType::kData, 0, 1, "x"));
    now_ += kReadTimeout / 10;
  }
  EXPECT_THAT(Overdue(), HasSubstr("unfinished message"));
}

TEST_F(ConnectionTest, AMessageThatMovesMayTakeLong) {
  Make();
  Client(Headers(1));
  const std::string piece(kMinProgressBytes / 4, 'x');
  for (int i = 0; i < 100; ++i) {
    Client(Frame(FrameType::kData, 0, 1, piece));
    now_ += kReadTimeout / 5;
    ASSERT_THAT(Overdue(), IsEmpty()) << i;
  }
}

// The end of the stream counts when the frame that carries it is complete.
TEST_F(ConnectionTest, FindsALastFrameThatIsCut) {
  Make();
  const std::string last =
      Frame(FrameType::kData, FrameHeader::kEndStream, 1, "message");
  Client(Headers(1) + last.substr(0, last.size() - 1));
  now_ += kReadTimeout;
  EXPECT_THAT(Overdue(), HasSubstr("unfinished message"));
  Client(last.substr(last.size() - 1));
  EXPECT_THAT(Overdue(), IsEmpty());
}

// If a message waits for the server, this is not the fault of the client.
TEST_F(ConnectionTest, LetsCompleteAndAnsweredCallsWait) {
  Make();
  Client(Headers(1, FrameHeader::kEndStream) + Headers(3));
  Server(Headers(3));
  now_ += 10 * kReadTimeout;
  EXPECT_THAT(Overdue(), IsEmpty());
}

TEST_F(ConnectionTest, FindsABlockOfHeadersThatDoesNotEnd) {
  Make();
  Client(Frame(FrameType::kHeaders, FrameHeader::kEndStream, 1, "x"));
  now_ += kReadTimeout;
  EXPECT_THAT(Overdue(), HasSubstr("headers"));
}

TEST_F(ConnectionTest, FindsWhoSpeaksNoHttp2) {
  Make();
  Connection silent(ours_.get(), "unix:", {}, totals_, now_);
  EXPECT_THAT(silent.Overdue(now_, kReadTimeout), IsEmpty());
  EXPECT_THAT(silent.Overdue(now_ + kReadTimeout, kReadTimeout),
              HasSubstr("HTTP/2"));
  silent.Closed();
}

TEST_F(ConnectionTest, EstimatesWhatIsHeld) {
  Make({.resets = {.burst = 100, .per_second = 1}});
  EXPECT_EQ(connection_->HeldBytes(now_), 0);
  Client(Headers(1) + Frame(FrameType::kData, 0, 1, std::string(1000, 'x')));
  EXPECT_EQ(connection_->HeldBytes(now_), Connection::kCallBytes + 1000);
  Client(Reset(1));
  EXPECT_EQ(connection_->HeldBytes(now_), Connection::kCallBytes);
  EXPECT_EQ(connection_->HeldBytes(now_ + seconds(2)), 0);
}

TEST_F(ConnectionTest, EndShutsTheSocketDown) {
  Make();
  Client(Headers(1));
  connection_->End("why");
  EXPECT_EQ(connection_->end_reason(), "why");
  char byte = 0;
  EXPECT_EQ(recv(theirs_.get(), &byte, 1, 0), 0) << "the client sees the end";
  EXPECT_EQ(totals_->open_calls, 0);
  EXPECT_EQ(totals_->ending_calls, 1) << "gRPC has not dropped it yet";
  connection_->Closed();
  EXPECT_EQ(totals_->ending_calls, 0);
}

// gRPC can still read what the client sent before, and the log must count each
// end only once.
TEST_F(ConnectionTest, EndsOnce) {
  Make();
  Client(Headers(1));
  EXPECT_TRUE(connection_->End("why"));
  EXPECT_EQ(Client(Headers(3)), Verdict::kMustEnd);
  EXPECT_FALSE(connection_->End("another"));
  EXPECT_EQ(connection_->end_reason(), "why");
  EXPECT_EQ(totals_->ending_calls, 1);
}

TEST_F(ConnectionTest, DoesNotTouchASocketThatWasClosed) {
  Make();
  connection_->Closed();
  connection_->End("why");
  char byte = 0;
  EXPECT_EQ(recv(theirs_.get(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, EAGAIN);
}

}  // namespace
}  // namespace attnd::server
