// Parsing a request through the splitter, compared with protobuf's own parser:
// both must accept the same bytes and make the same message of them, unless
// there are too many fields.
#include "server/codec/message_parser.h"

#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/message_differencer.h"
#include "server/codec/message_parser.h"
#include "server/memory/admission.h"
#include "tests/server/message_tools.h"
#include "wire/message_splitter.h"
#include "wire/reasons.h"
#include "wire/received_message.h"

namespace attnd::server {
namespace {

using google::protobuf::util::MessageDifferencer;

constexpr int64_t kMuch = 1LL << 40;

// Checks that both parsers agree about `bytes`. Returns whether they accept
// them.
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
  // A field takes at least two bytes.
  if (bytes.size() > 2 * kMaxFields &&
      ReasonOf(split.status()) == kTooManyFields) {
    return accepted;
  }
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
class MessageParserTest : public ::testing::Test {};
using Requests =
    ::testing::Types<v1::AttentionRequest, v1::SelfAttentionRequest,
                     v1::CrossAttentionRequest, v1::AttentionBackwardRequest,
                     v1::AttentionStreamRequest, v1::MemoryEstimateRequest,
                     v1::BenchmarkRequest>;
TYPED_TEST_SUITE(MessageParserTest, Requests);

TYPED_TEST(MessageParserTest, AgreesOnRandomMessages) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    TypeParam message;
    FillAtRandom(message, rng);
    EXPECT_TRUE(Compare<TypeParam>(message.SerializeAsString(), seed));
    if (this->HasFailure()) return;
  }
}

TYPED_TEST(MessageParserTest, AgreesOnMutatedMessages) {
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
  // Both outcomes must occur often enough for the comparison to mean something.
  EXPECT_GT(accepted, kRounds / 50);
  EXPECT_LT(accepted, kRounds);
}

TYPED_TEST(MessageParserTest, AgreesOnTruncatedMessages) {
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

TYPED_TEST(MessageParserTest, AgreesOnRandomBytes) {
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

TEST(MessageParserCases, AgreesOnTheCornersOfTheFormat) {
  using std::string_literals::operator""s;
  const std::pair<std::string, bool> cases[] = {
      {""s, true},
      {"\x00"s, false},                          // tag 0
      {"\x02\x00"s, false},                      // field number 0
      {"\x0c"s, false},                          // a group that was not opened
      {"\x0e"s, false},                          // wire type 6
      {"\x0a\x00"s, true},                       // an empty query
      {"\x8a\x80\x80\x80\x00\x00"s, true},       // a padded tag
      {"\x8a\x80\x80\x80\x80\x00\x00"s, false},  // too much padding
      {"\x0a\x80\x80\x80\x80\x00"s, true},       // a padded length
      {"\x0a\x80\x80\x80\x80\x80\x00"s, false},  // too much padding
      {"\x0a\xff\xff\xff\xff\x0f"s, false},      // a length of -1
      {"\x08\x05"s, true},                       // query as a varint: unknown
      {"\x0b\x0c"s, true},                       // query as a group: unknown
      {"\x0b\x14"s, false},                      // ended with another number
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

TEST(MessageParserCases, MeasuresWhatItThenWrites) {
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
    google::protobuf::io::ArrayInputStream stream(bytes.data(),
                                                  static_cast<int>(size));
    const auto split =
        SplitPayloads(&stream, size, v1::AttentionRequest::descriptor(), *cost);
    ASSERT_TRUE(split.ok());
    EXPECT_EQ(split->bound_bytes, cost->bound_bytes);
    EXPECT_EQ(static_cast<int64_t>(split->header.size()), cost->header_bytes);
    EXPECT_EQ(static_cast<int64_t>(split->payloads.size()),
              cost->payload_count);
    v1::AttentionRequest parsed;
    ASSERT_TRUE(parsed.ParseFromString(split->header));
    EXPECT_LE(static_cast<int64_t>(parsed.SpaceUsedLong()), cost->bound_bytes);
  }
}

TEST(MessageParserCases, LeavesTensorsWhereTheyAre) {
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
TEST(MessageParserCases, LeavesNestedTensorsWhereTheyAre) {
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

TEST(MessageParserCases, RefusesBeforeItAllocatesWhatTheBudgetLacks) {
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

std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) {
    bytes.push_back(static_cast<char>(value | 0x80));
  }
  bytes.push_back(static_cast<char>(value));
  return bytes;
}

// Returns a field of wire type 2.
std::string Field(uint32_t number, const std::string& content) {
  return Varint(number << 3 | 2) + Varint(content.size()) + content;
}

// Repeats `unit` until there are `count` fields or numbers, and wraps them with
// `around`.
struct LimitCase {
  const char* name;
  std::string unit;
  int64_t per_unit;  // fields or numbers in one unit
  int64_t limit;
  int64_t around_fields;  // the fields that `around` adds
  std::function<std::string(const std::string&)> around;
};

std::vector<LimitCase> LimitCases() {
  using std::string_literals::operator""s;
  const auto plain = [](const std::string& units) { return units; };
  const auto in_query = [](const std::string& units) {
    return Field(1, units);
  };
  const auto in_options = [](const std::string& units) {
    return Field(4, units);
  };
  const auto in_values = [](const std::string& units) {
    return Field(1, Field(4, units));
  };
  return {
      {"unknown numbers", "\x78\x01"s, 1, kMaxFields, 0, plain},
      {"unknown bytes", "\x7a\x00"s, 1, kMaxFields, 0, plain},
      {"unknown groups", "\x7b\x08\x01\x7c"s, 3, kMaxFields, 0, plain},
      {"queries that merge", "\x0a\x00"s, 1, kMaxFields, 0, plain},
      {"types of a query", "\x08\x01"s, 1, kMaxFields, 1, in_query},
      {"payloads of a query", "\x1a\x00"s, 1, kMaxFields, 1, in_query},
      {"values that merge", "\x22\x02\x0a\x00"s, 2, kMaxFields, 1, in_query},
      {"packed shapes", "\x12\x01\x01"s, 1, kMaxFields, 1, in_query},
      {"options that merge", "\x22\x00"s, 1, kMaxFields, 0, plain},
      {"numbers of a shape", "\x10\x01"s, 1, kMaxListedNumbers, 0, in_query},
      {"numbers of options", "\x70\x01\x78\x01"s, 2, kMaxListedNumbers, 0,
       in_options},
      {"elements one by one", "\x0d\x00\x00\x80\x3f"s, 1, kMaxListedNumbers, 0,
       in_values},
      {"slopes in fields", "\x55\x00\x00\x80\x3f"s, 1, kMaxListedNumbers, 0,
       in_options},
  };
}

TEST(MessageSplitterLimits, AcceptAsManyAsSaidAndRefuseOneMore) {
  for (const LimitCase& test : LimitCases()) {
    SCOPED_TRACE(test.name);
    const int64_t fit = (test.limit - test.around_fields) / test.per_unit;
    Admission admission(kMuch, 1);
    Admission::Reservation reservation = *admission.Admit(0);
    std::string units;
    for (int64_t i = 0; i < fit; ++i) units += test.unit;
    v1::AttentionRequest request;
    const auto accepted = ParseMessage(InSlices(test.around(units), 5000, 1),
                                       reservation, request);
    EXPECT_TRUE(accepted.ok()) << accepted.status();
    const auto refused =
        ParseMessage(InSlices(test.around(units + test.unit), 5000, 1),
                     reservation, request);
    EXPECT_EQ(RefusalOf(refused.status()).reason, "TOO_MANY_FIELDS");
    EXPECT_EQ(RefusalOf(refused.status()).field, "");
    EXPECT_NE(refused.status().message().find(
                  absl::StrCat("at most ", test.limit, ", got more")),
              absl::string_view::npos)
        << refused.status();
  }
}

// What follows the first field too many is not read.
TEST(MessageSplitterLimits, RefuseEarly) {
  for (const LimitCase& test : LimitCases()) {
    SCOPED_TRACE(test.name);
    std::string units;
    for (int64_t i = 0; i < 2 * test.limit; ++i) units += test.unit;
    const std::string bytes = test.around(units);
    const auto size = static_cast<int>(bytes.size());
    constexpr int kBlock = 64;
    google::protobuf::io::ArrayInputStream stream(bytes.data(), size, kBlock);
    EXPECT_FALSE(
        MeasureSplit(&stream, size, v1::AttentionRequest::descriptor()).ok());
    const auto unit_bytes = static_cast<int64_t>(test.unit.size());
    EXPECT_LE(stream.ByteCount(),
              (test.limit / test.per_unit + 1) * unit_bytes + 2 * kBlock);
  }
}

// Each byte of a packed list may be a number; ten bytes are one for sure.
TEST(MessageSplitterLimits, BoundPackedListsBeforeTheyAreCopied) {
  const auto measure = [](const std::string& bytes) {
    const auto size = static_cast<int>(bytes.size());
    google::protobuf::io::ArrayInputStream stream(bytes.data(), size, 64);
    absl::Status status =
        MeasureSplit(&stream, size, v1::AttentionRequest::descriptor())
            .status();
    return std::pair(status, stream.ByteCount());
  };
  const std::string fits(10 * kMaxListedNumbers, '\x01');
  EXPECT_TRUE(measure(Field(4, Field(15, fits))).first.ok());
  const auto [status, read] =
      measure(Field(4, Field(15, fits + std::string(10, '\x01'))));
  EXPECT_EQ(ReasonOf(status), kTooManyFields);
  EXPECT_LE(read, 128);
  // A float always takes four bytes.
  const std::string floats(4 * kMaxListedNumbers, '\0');
  EXPECT_TRUE(measure(Field(4, Field(10, floats))).first.ok());
  EXPECT_FALSE(measure(Field(4, Field(10, floats + "1234"))).first.ok());
  // Packed elements of a tensor are limited only by the size of the message.
  EXPECT_TRUE(
      measure(Field(1, Field(4, Field(1, floats + floats)))).first.ok());
}

// Legal encodings that no attnd client writes.
TEST(MessageSplitterLimits, AcceptWhateverAnEncoderMayWrite) {
  // Two of the longest lists, interleaved, with a field for each number.
  std::string options;
  for (int i = 0; i < 65'537; ++i) options += "\x70\x01\x78\x01";
  EXPECT_TRUE(Compare<v1::AttentionRequest>(Field(4, options), 17));
  // The pieces of a tensor come in another order, and some come twice.
  const std::string pieces = Field(1, "\x1a\x01\x41") + Field(1, "\x10\x02") +
                             Field(1, "\x08\x01") + Field(1, "\x10\x03") +
                             Field(1, "\x08\x02\x1a\x02\x41\x42");
  EXPECT_TRUE(Compare<v1::AttentionRequest>(pieces, 3));
}

absl::StatusOr<std::optional<SplitMessage>> TryLight(const std::string& bytes,
                                                     int64_t* read = nullptr) {
  const auto size = static_cast<int>(bytes.size());
  google::protobuf::io::ArrayInputStream stream(bytes.data(), size, 64);
  auto light = SplitIfLight(&stream, size, v1::AttentionRequest::descriptor());
  if (read != nullptr) *read = stream.ByteCount();
  return light;
}

TEST(MessageSplitterLight, IsDecidedByNumbersAndNotByPayloads) {
  v1::AttentionRequest request = GoodAttention();
  request.mutable_query()->set_data(std::string(1 << 20, 'x'));
  EXPECT_TRUE(TryLight(request.SerializeAsString())->has_value());
  const std::string light(kMaxLightNumbers, '\x01');
  for (const auto& around :
       std::vector<std::function<std::string(std::string)>>{
           [](const std::string& list) { return Field(1, Field(2, list)); },
           [](const std::string& list) { return Field(4, Field(15, list)); },
           [](const std::string& handle) {
             return Field(1, Field(5, Field(1, handle)));
           }}) {
    EXPECT_TRUE(TryLight(around(light))->has_value());
    const auto heavy = TryLight(around(light + "\x01"));
    ASSERT_TRUE(heavy.ok());
    EXPECT_FALSE(heavy->has_value());
  }
  // An element always takes four bytes.
  const std::string elements(4 * kMaxLightNumbers, '\0');
  EXPECT_TRUE(TryLight(Field(1, Field(4, Field(1, elements))))->has_value());
  EXPECT_FALSE(
      TryLight(Field(1, Field(4, Field(1, elements + "1234"))))->has_value());
}

TEST(MessageSplitterLight, GivesUpWithoutReadingOn) {
  int64_t read = 0;
  EXPECT_FALSE(
      TryLight(Field(1, Field(4, Field(1, std::string(1 << 20, '\0')))), &read)
          ->has_value());
  EXPECT_LE(read, 128);
  std::string numbers;
  for (int i = 0; i < 100'000; ++i) numbers += "\x10\x01";
  EXPECT_FALSE(TryLight(Field(1, numbers), &read)->has_value());
  EXPECT_LE(read, 2 * kMaxLightNumbers + 128);
}

TEST(MessageSplitterLight, MakesTheSameOfAMessageAsTheOtherWay) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 rng(seed);
    v1::AttentionRequest message;
    FillAtRandom(message, rng);
    const std::string bytes = message.SerializeAsString();
    const auto light = TryLight(bytes);
    ASSERT_TRUE(light.ok());
    if (!light->has_value()) continue;
    const auto size = static_cast<int>(bytes.size());
    google::protobuf::io::ArrayInputStream measured(bytes.data(), size);
    google::protobuf::io::ArrayInputStream stream(bytes.data(), size);
    const auto* const type = v1::AttentionRequest::descriptor();
    const auto cost = MeasureSplit(&measured, size, type);
    const auto split = SplitPayloads(&stream, size, type, *cost);
    EXPECT_EQ((*light)->header, split->header);
    EXPECT_EQ((*light)->payloads.size(), split->payloads.size());
    EXPECT_GE((*light)->bound_bytes, split->bound_bytes);
  }
}

}  // namespace
}  // namespace attnd::server
