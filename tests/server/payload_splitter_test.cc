// The splitter against protobuf's own parser: both must accept the same bytes
// and make the same message of them.
#include "server/payload_splitter.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>

#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/message_differencer.h"
#include "server/admission.h"
#include "server/wire_message.h"
#include "tests/server/message_tools.h"

namespace attnd::server {
namespace {

using google::protobuf::util::MessageDifferencer;

constexpr int64_t kMuch = 1LL << 40;

// Fails unless both parsers say the same of `bytes`. Returns what they say.
template <typename Request>
bool Compare(const std::string& bytes, uint64_t seed) {
  Request expected;
  const bool accepted = expected.ParseFromString(bytes);
  expected.DiscardUnknownFields();

  const ReceivedMessage received = InSlices(bytes, 1 + seed % 23, seed);
  Admission admission(kMuch, 1);
  Admission::Reservation reservation = *admission.Admit(received.size_bytes());
  Request got;
  const absl::StatusOr<SplitMessage> split =
      ParseMessage(received, reservation, got);
  EXPECT_EQ(split.ok(), accepted) << split.status();
  if (split.ok() && accepted) {
    RestorePayloads(got, *split, received);
    EXPECT_TRUE(MessageDifferencer::Equals(got, expected));
  } else if (!split.ok()) {
    EXPECT_EQ(RefusalOf(split.status()).reason, "MALFORMED_MESSAGE");
    EXPECT_EQ(RefusalOf(split.status()).field, "");
  }
  return accepted;
}

template <typename Request>
class PayloadSplitterTest : public ::testing::Test {};
using Requests =
    ::testing::Types<v1::AttentionRequest, v1::SelfAttentionRequest,
                     v1::CrossAttentionRequest, v1::AttentionBackwardRequest,
                     v1::AttentionStreamRequest, v1::MemoryEstimateRequest,
                     v1::BenchmarkRequest>;
TYPED_TEST_SUITE(PayloadSplitterTest, Requests);

TYPED_TEST(PayloadSplitterTest, AgreesOnRandomMessages) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    TypeParam message;
    FillAtRandom(message, rng);
    EXPECT_TRUE(Compare<TypeParam>(message.SerializeAsString(), seed));
    if (this->HasFailure()) return;
  }
}

TYPED_TEST(PayloadSplitterTest, AgreesOnMutatedMessages) {
  int accepted = 0;
  constexpr int kRounds = 4000;
  for (uint64_t seed = 0; seed < kRounds; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    TypeParam message;
    FillAtRandom(message, rng);
    accepted +=
        Compare<TypeParam>(Mutate(message.SerializeAsString(), rng), seed);
    if (this->HasFailure()) return;
  }
  // Both outcomes were seen, or nothing was tested.
  EXPECT_GT(accepted, kRounds / 50);
  EXPECT_LT(accepted, kRounds);
}

TYPED_TEST(PayloadSplitterTest, AgreesOnTruncatedMessages) {
  std::mt19937_64 rng(7);
  TypeParam message;
  FillAtRandom(message, rng);
  const std::string bytes = message.SerializeAsString();
  for (size_t size = 0; size <= bytes.size(); ++size) {
    SCOPED_TRACE(size);
    Compare<TypeParam>(bytes.substr(0, size), size);
    if (this->HasFailure()) return;
  }
}

TYPED_TEST(PayloadSplitterTest, AgreesOnRandomBytes) {
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    Compare<TypeParam>(RandomBytes(rng() % 24, rng), seed);
    if (this->HasFailure()) return;
  }
}

std::string Repeat(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

TEST(PayloadSplitterCases, AgreesOnTheCornersOfTheFormat) {
  using std::string_literals::operator""s;
  const std::pair<std::string, bool> cases[] = {
      {""s, true},
      {"\x00"s, false},                          // tag 0
      {"\x02\x00"s, false},                      // field number 0
      {"\x0c"s, false},                          // a group that never began
      {"\x0e"s, false},                          // wire type 6
      {"\x0a\x00"s, true},                       // an empty query
      {"\x8a\x80\x80\x80\x00\x00"s, true},       // a padded tag
      {"\x8a\x80\x80\x80\x80\x00\x00"s, false},  // padded too far
      {"\x0a\x80\x80\x80\x80\x00"s, true},       // a padded length
      {"\x0a\x80\x80\x80\x80\x80\x00"s, false},  // padded too far
      {"\x0a\xff\xff\xff\xff\x0f"s, false},      // a length of -1
      {"\x08\x05"s, true},                       // query as a varint: unknown
      {"\x0b\x0c"s, true},                       // query as a group: unknown
      {"\x0b\x14"s, false},                      // ended by another number
      {"\x0a\x03\x1a\x02\x41"s, false},          // a child beyond its parent
      {"\x0a\x02\x1a\x00\x0a\x00"s, true},       // merged twice
      {"\x0a\x05\x1a\x01\x41\x22\x00"s, true},   // data, then values
      {"\x0a\x05\x22\x00\x1a\x01\x41"s, true},   // values, then data
      {"\x0a\x06\x1a\x01\x41\x1a\x01\x42"s, true},  // data twice
      {"\xf8\x07\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"s, true},
      {"\xf8\x07\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"s, false},
      {Repeat("\xfb\x07", 100) + Repeat("\xfc\x07", 100), true},
      {Repeat("\xfb\x07", 101) + Repeat("\xfc\x07", 101), false},
  };
  for (const auto& [bytes, good] : cases) {
    SCOPED_TRACE(::testing::PrintToString(bytes));
    EXPECT_EQ(Compare<v1::AttentionRequest>(bytes, 3), good);
  }
}

TEST(PayloadSplitterCases, MeasuresWhatItThenWrites) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 rng(seed);
    v1::AttentionRequest message;
    FillAtRandom(message, rng);
    const std::string bytes = message.SerializeAsString();
    const auto size = static_cast<int64_t>(bytes.size());
    google::protobuf::io::ArrayInputStream measured(bytes.data(),
                                                    static_cast<int>(size));
    const auto cost =
        MeasureSplit(&measured, size, v1::AttentionRequest::descriptor());
    ASSERT_TRUE(cost.ok());
    SplitCost split_cost = *cost;
    google::protobuf::io::ArrayInputStream stream(bytes.data(),
                                                  static_cast<int>(size));
    const auto split = SplitPayloads(
        &stream, size, v1::AttentionRequest::descriptor(), &split_cost);
    ASSERT_TRUE(split.ok());
    EXPECT_EQ(split_cost.bound_bytes, cost->bound_bytes);
    EXPECT_EQ(static_cast<int64_t>(split->header.size()), cost->header_bytes);
    EXPECT_EQ(static_cast<int64_t>(split->payloads.size()),
              cost->payload_count);
    v1::AttentionRequest parsed;
    ASSERT_TRUE(parsed.ParseFromString(split->header));
    EXPECT_LE(static_cast<int64_t>(parsed.SpaceUsedLong()), cost->bound_bytes);
  }
}

TEST(PayloadSplitterCases, LeavesTensorsWhereTheyAre) {
  v1::AttentionRequest request = GoodAttention();
  request.mutable_query()->set_data(std::string(1 << 20, 'x'));
  const ReceivedMessage received =
      InSlices(request.SerializeAsString(), 65536, 1);
  Admission admission(kMuch, 1);
  Admission::Reservation reservation = *admission.Admit(0);
  v1::AttentionRequest header;
  ASSERT_TRUE(ParseMessage(received, reservation, header).ok());
  EXPECT_EQ(header.query().data().size(), 8U);
  EXPECT_LT(reservation.bytes(), received.size_bytes() + 8192);
}

// Those of the options too.
TEST(PayloadSplitterCases, LeavesNestedTensorsWhereTheyAre) {
  v1::AttentionRequest request = GoodAttention();
  *request.mutable_options()->mutable_bias() = DataTensor({1000, 1000}, 1);
  *request.mutable_options()->mutable_mask() = MaskTensor({1000, 1000}, 2);
  const ReceivedMessage received =
      InSlices(request.SerializeAsString(), 100'000, 1);
  Admission admission(kMuch, 1);
  Admission::Reservation reservation = *admission.Admit(received.size_bytes());
  v1::AttentionRequest header;
  ASSERT_TRUE(ParseMessage(received, reservation, header).ok());
  EXPECT_EQ(header.options().bias().data().size(), size_t{kPayloadTokenBytes});
  EXPECT_EQ(header.options().mask().data().size(), size_t{kPayloadTokenBytes});
  EXPECT_LT(reservation.bytes() - received.size_bytes(), 10'000);
}

TEST(PayloadSplitterCases, RefusesBeforeItAllocatesWhatTheBudgetLacks) {
  // Each byte becomes an int64.
  v1::AttentionRequest request;
  auto& lengths = *request.mutable_options()->mutable_key_lengths();
  lengths.Resize(100'000, 1);
  const ReceivedMessage received =
      InSlices(request.SerializeAsString(), 65536, 1);
  Admission admission(500'000, 1);
  Admission::Reservation reservation = *admission.Admit(received.size_bytes());
  const auto split = ParseMessage(received, reservation, request);
  EXPECT_EQ(RefusalOf(split.status()).reason, "MEMORY_BUDGET");
  EXPECT_EQ(RefusalOf(split.status()).retry_ms, -1);
}

}  // namespace
}  // namespace attnd::server
