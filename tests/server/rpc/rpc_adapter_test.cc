// Checks what attnd assumes about the gRPC that it is linked with.
#include "server/rpc/rpc_adapter.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attnd/v1/attention.pb.h"
#include "grpcpp/support/slice.h"
#include "tests/server/message_tools.h"
#include "wire/message_sizes.h"
#include "wire/outgoing_message.h"

namespace attnd::server {
namespace {

gpr_timespec InSeconds(int64_t whole_seconds, gpr_clock_type clock) {
  return gpr_time_add(gpr_now(clock),
                      gpr_time_from_seconds(whole_seconds, GPR_TIMESPAN));
}

TEST(RpcAdapterTest, AllConnectionsOfAHostAreOneCaller) {
  EXPECT_EQ(CallerOfPeer("ipv4:10.1.2.3:50000"), "ipv4:10.1.2.3");
  EXPECT_EQ(CallerOfPeer("ipv4:10.1.2.3:50001"), "ipv4:10.1.2.3");
  EXPECT_EQ(CallerOfPeer("ipv6:%5Bfd00::1%5D:50000"), "ipv6:%5Bfd00::1%5D");
  EXPECT_NE(CallerOfPeer("ipv6:%5Bfd00::1%5D:1"),
            CallerOfPeer("ipv6:%5Bfd00::2%5D:1"));
  EXPECT_EQ(CallerOfPeer("unix:"), "unix");
  EXPECT_EQ(CallerOfPeer("unix:/run/client.sock"), "unix");
}

TEST(RpcAdapterTest, AddressesAreReadable) {
  EXPECT_EQ(PeerText("ipv6:%5B::1%5D:50000"), "ipv6:[::1]:50000");
  EXPECT_EQ(PeerText("ipv6:%5Bfe80::1%252%5D:7"), "ipv6:[fe80::1%2]:7");
  EXPECT_EQ(PeerText("ipv4:127.0.0.1:50000"), "ipv4:127.0.0.1:50000");
}

TEST(RpcAdapterTest, DeadlinesStayInOrderHoweverFar) {
  using std::chrono::seconds;
  for (const gpr_clock_type clock : {GPR_CLOCK_REALTIME, GPR_CLOCK_MONOTONIC}) {
    const SteadyTime before = std::chrono::steady_clock::now();
    const SteadyTime soon = ToSteadyTime(InSeconds(100, clock));
    EXPECT_GE(soon, before + seconds(99));
    EXPECT_LE(soon, std::chrono::steady_clock::now() + seconds(101));
    EXPECT_LT(ToSteadyTime(InSeconds(-5, clock)), before);
    EXPECT_EQ(ToSteadyTime(gpr_inf_future(clock)), SteadyTime::max());
    EXPECT_LT(ToSteadyTime(gpr_inf_past(clock)), before);
    for (const int64_t hours : {2'500'000, 5'000'000, 99'999'999}) {
      EXPECT_EQ(ToSteadyTime(InSeconds(hours * 3600, clock)),
                SteadyTime::max());
    }
  }
}

TEST(RpcAdapterTest, AMissingMessageIsTheClientsFault) {
  const auto quota =
      std::make_shared<MessageQuota>(MessageQuota::Limits{}, [](int64_t) {});
  const grpc::ByteBuffer none;
  EXPECT_EQ(TakeMessage(&none, quota).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// Has a small piece and a large one. `owner` shows when gRPC has released them.
struct SentMessage {
  static OutgoingMessage Make(const std::string& data,
                              std::shared_ptr<const void> owner) {
    OutgoingMessage message(std::move(owner));
    message.AddField(1, v1::Tensor(), v1::Tensor::kDataFieldNumber,
                     std::as_bytes(std::span(data)));
    return message;
  }

  std::string data = std::string(3 * kMinProgressBytes + 1000, 'x');
  std::shared_ptr<const void> owner = std::make_shared<int>(0);
  std::string joined = Join(Make(data, owner));
  SentSlices sent;
  grpc::ByteBuffer bytes = ToByteBuffer(Make(data, owner), sent);
};

TEST(RpcAdapterTest, PiecesAreSentAsTheyAre) {
  SentMessage message;
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(message.bytes.Dump(&slices).ok());
  std::string joined;
  for (const grpc::Slice& slice : slices) {
    EXPECT_LE(slice.size(), static_cast<size_t>(kMinProgressBytes));
    joined.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  EXPECT_EQ(joined, message.joined);
  slices.clear();
  EXPECT_GT(message.owner.use_count(), 1);
  message.bytes.Clear();
  EXPECT_EQ(message.owner.use_count(), 1);
}

// This test takes and releases the references that gRPC has while it sends.
TEST(RpcAdapterTest, SlicesAreSeenToGo) {
  SentMessage message;
  grpc::ByteBuffer of_the_call = message.bytes;
  std::vector<grpc::Slice> to_be_sent;
  ASSERT_TRUE(message.bytes.Dump(&to_be_sent).ok());
  EXPECT_EQ(message.sent.bytes(), 0);
  // There are the text, three whole slices, and the rest of the data.
  ASSERT_EQ(to_be_sent.size(), 5U);
  to_be_sent.erase(to_be_sent.begin());
  EXPECT_EQ(message.sent.bytes(), 0);
  for (int64_t slice = 1; slice <= 3; ++slice) {
    to_be_sent.erase(to_be_sent.begin());
    EXPECT_EQ(message.sent.bytes(), slice * kMinProgressBytes);
  }
  to_be_sent.clear();
  EXPECT_EQ(message.sent.bytes(), 3 * kMinProgressBytes);
}

}  // namespace
}  // namespace attnd::server
