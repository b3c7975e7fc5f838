// Tests shared regions of the C++ client with a real server.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "client/attention_client.h"
#include "client/shared_region.h"
#include "tests/server/life_server.h"

namespace attnd::server {
namespace {

using client::AttentionClient;
using client::DataType;
using client::DetailsOf;
using client::Elements;
using client::RegisterRegion;
using client::SharedRegion;

constexpr int64_t kRegionBytes = 1 << 20;
constexpr int64_t kQuotaBytes = 16 << 20;

class SharedMemoryTest : public ::testing::Test {
 protected:
  SharedMemoryTest() {
    ServerConfig config = TestConfig();
    config.shm_socket = SocketPath() + ".shm";
    config.shm_quota_bytes = kQuotaBytes;
    shm_socket_ = config.shm_socket;
    server_ = StartServer(config);
    client_.emplace(
        client::ClientOptions{.target = server_->addresses().front()});
  }

  SharedRegion Region() const {
    return RegisterRegion(shm_socket_, kRegionBytes).value();
  }

  // Any 16 bits are a number or NaN. NaN must not occur, because it equals
  // nothing.
  static void Fill(const Elements& elements, uint64_t seed) {
    std::mt19937_64 rng(seed);
    for (std::byte& byte : elements.bytes()) {
      byte = static_cast<std::byte>(rng() & 0x33U);
    }
  }

  std::string shm_socket_;
  std::unique_ptr<Server> server_;
  std::optional<AttentionClient> client_;
};

TEST_F(SharedMemoryTest, AnswersTheBitsOfAMessage) {
  const std::vector<int64_t> q_shape = {2, 4, 37, 16};
  const std::vector<int64_t> kv_shape = {2, 2, 61, 16};
  const int64_t q_count = 2LL * 4 * 37 * 16;
  const int64_t kv_count = 2LL * 2 * 61 * 16;
  for (const DataType type :
       {DataType::kF32, DataType::kF16, DataType::kBF16}) {
    SharedRegion region = Region();
    const auto allocate = [&region, type](int64_t count) {
      Elements part = region.Allocate(type, count).value();
      Fill(part, static_cast<uint64_t>(count));
      return part;
    };
    const Elements query = allocate(q_count);
    const Elements key = allocate(kv_count);
    const Elements value = allocate(kv_count);
    const Elements output = allocate(q_count);
    const Elements lse = region.Allocate(DataType::kF32, q_count / 16).value();
    const client::AttentionOptions options = {.causal =
                                                  client::Causal::kBottomRight};
    const auto shared =
        client_->Attention({.query = {query, q_shape},
                            .key = {key, kv_shape},
                            .value = {value, kv_shape}},
                           {.output = output, .lse = lse}, options);
    ASSERT_TRUE(shared.ok()) << shared.status();
    EXPECT_EQ(shared->output_shape, q_shape);

    // This makes the same call without shared memory.
    std::vector<std::byte> inline_output(output.bytes().size());
    std::vector<float> inline_lse(lse.floats().size());
    const auto sent = client_->Attention(
        {.query = {{type, query.bytes()}, q_shape},
         .key = {{type, key.bytes()}, kv_shape},
         .value = {{type, value.bytes()}, kv_shape}},
        {.output = {type, inline_output}, .lse = inline_lse}, options);
    ASSERT_TRUE(sent.ok()) << sent.status();
    EXPECT_EQ(std::memcmp(output.bytes().data(), inline_output.data(),
                          inline_output.size()),
              0);
    EXPECT_EQ(
        std::memcmp(lse.bytes().data(), inline_lse.data(), lse.bytes().size()),
        0);
  }
}

TEST_F(SharedMemoryTest, EveryMethodTakesRegions) {
  SharedRegion region = Region();
  const std::vector<int64_t> shape = {3, 20, 8};
  const Elements sequence = region.Allocate(DataType::kF32, 480).value();
  const Elements output = region.Allocate(DataType::kF32, 480).value();
  Fill(sequence, 1);
  ASSERT_TRUE(
      client_->SelfAttention({sequence, shape}, {.output = output}).ok());
  const std::vector<float> first(output.floats().begin(),
                                 output.floats().end());
  std::memset(output.bytes().data(), 0, output.bytes().size());
  ASSERT_TRUE(client_
                  ->CrossAttention({sequence, shape}, {sequence, shape},
                                   {.output = output})
                  .ok());
  EXPECT_EQ(
      std::memcmp(output.bytes().data(), first.data(), output.bytes().size()),
      0);
}

TEST_F(SharedMemoryTest, RefusesAnswersWithoutRoomBeforeTheyAreWritten) {
  SharedRegion region = Region();
  const Elements sequence = region.Allocate(DataType::kF32, 16).value();
  const Elements output = region.Allocate(DataType::kF32, 8).value();
  const Elements lse = region.Allocate(DataType::kF32, 3).value();
  const auto narrow =
      client_->SelfAttention({sequence, {4, 4}}, {.output = output});
  ASSERT_FALSE(narrow.ok());
  EXPECT_EQ(DetailsOf(narrow.status()).field_violations.at(0).field, "output");
  const auto narrow_lse = client_->SelfAttention(
      {sequence, {4, 4}}, {.output = sequence, .lse = lse});
  ASSERT_FALSE(narrow_lse.ok());
  EXPECT_EQ(DetailsOf(narrow_lse.status()).field_violations.at(0).field, "lse");
  // Errors of the server use the names of its own fields.
  std::vector<float> own(16);
  const auto mixed =
      client_->SelfAttention({sequence, {4, 4}}, {.output = own});
  ASSERT_FALSE(mixed.ok());
  EXPECT_EQ(DetailsOf(mixed.status()).field_violations.at(0).field,
            "options.output_region");
}

TEST_F(SharedMemoryTest, ARegionIsGivenUpWithItsOwner) {
  std::optional<SharedRegion> region = Region();
  const Elements sequence = region->Allocate(DataType::kF32, 16).value();
  const Elements output = region->Allocate(DataType::kF32, 16).value();
  SharedRegion moved = *std::move(region);
  region.reset();
  const auto call = [&] {
    return client_->SelfAttention({sequence, {4, 4}}, {.output = output})
        .status();
  };
  ASSERT_TRUE(call().ok()) << call();
  { const SharedRegion gone = std::move(moved); }
  absl::Status status = call();
  for (int i = 0; i < 20'000 && status.ok(); ++i) status = call();
  EXPECT_EQ(DetailsOf(status).reason, "UNKNOWN_REGION") << status;
}

TEST_F(SharedMemoryTest, SaysWhyThereIsNoRegion) {
  const auto all = RegisterRegion(shm_socket_, kQuotaBytes);
  ASSERT_TRUE(all.ok()) << all.status();
  const auto more = RegisterRegion(shm_socket_, 1);
  EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(more.status().message().find("size: expected at most 0 bytes"), 0U)
      << more.status();
  EXPECT_EQ(RegisterRegion(shm_socket_ + "x", 1).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(RegisterRegion(shm_socket_, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RegisterRegion(shm_socket_, INT64_MAX).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RegisterRegion(std::string(200, 'x'), 1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(SharedMemoryTest, ARegionHasSoMuchRoom) {
  SharedRegion region = RegisterRegion(shm_socket_, 100).value();
  EXPECT_EQ(region.size_bytes(), 128);
  EXPECT_EQ(region.Allocate(DataType::kF32, 1)->place()->offset_bytes, 0);
  EXPECT_EQ(region.Allocate(DataType::kF16, 33).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(region.Allocate(DataType::kF16, 32)->place()->offset_bytes, 64);
  EXPECT_FALSE(region.Allocate(DataType::kF32, 1).ok());
  EXPECT_FALSE(region.Allocate(DataType::kF32, -1).ok());
  EXPECT_TRUE(region.Allocate(DataType::kF32, 0).ok());
}

}  // namespace
}  // namespace attnd::server
