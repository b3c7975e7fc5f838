// Checks every byte of the messages of the shared-memory socket.
#include "wire/shm_protocol.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "tests/support/mutate.h"

namespace attnd {
namespace {

using namespace std::string_literals;

const std::string& Handle() {
  static const auto& handle = *new std::string("0123456789abcdef");
  return handle;
}

TEST(ShmProtocolTest, ReadsBothRequests) {
  const auto registered = ParseShmRequest("ASHM\1\0\1\0"s, 1);
  ASSERT_TRUE(registered.ok()) << registered.status();
  EXPECT_EQ(registered->type, ShmRequest::Type::kRegister);
  const auto unregistered = ParseShmRequest("ASHM\1\0\2\0"s + Handle(), 0);
  ASSERT_TRUE(unregistered.ok()) << unregistered.status();
  EXPECT_EQ(unregistered->type, ShmRequest::Type::kUnregister);
  EXPECT_EQ(unregistered->handle, Handle());
}

TEST(ShmProtocolTest, SaysWhatIsWrong) {
  struct Case {
    std::string message;
    size_t descriptors;
    std::string expected;
  };
  const Case cases[] = {
      {"", 0, "length: expected at least 8 bytes, got 0"},
      {"ASHM\1\0\1"s, 1, "length: expected at least 8 bytes, got 7"},
      {"HTTP\1\0\1\0"s, 1, R"(magic: expected "ASHM", got "HTTP")"},
      {"\0\xff\n\0\1\0\1\0"s, 1,
       R"(magic: expected "ASHM", got "\x00\xff\n\x00")"},
      {"ASHM\2\0\1\0"s, 1, "version: expected 1, got 2"},
      {"ASHM\0\1\1\0"s, 1, "version: expected 1, got 256"},
      {"ASHM\1\0\0\0"s, 0,
       "type: expected 1 (register) or 2 (unregister), got 0"},
      {"ASHM\1\0\1\0x"s, 1, "length: expected 8 bytes for type 1, got 9"},
      {"ASHM\1\0\2\0"s, 0, "length: expected 24 bytes for type 2, got 8"},
      {"ASHM\1\0\2\0"s + Handle() + "x", 0,
       "length: expected 24 bytes for type 2, got more"},
      {"ASHM\1\0\1\0"s, 0, "descriptors: expected 1 for type 1, got 0"},
      {"ASHM\1\0\1\0"s, 2, "descriptors: expected 1 for type 1, got more"},
      {"ASHM\1\0\2\0"s + Handle(), 1,
       "descriptors: expected 0 for type 2, got 1"},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(test.expected);
    const auto request = ParseShmRequest(test.message, test.descriptors);
    ASSERT_FALSE(request.ok());
    EXPECT_EQ(request.status().message(), test.expected);
  }
}

TEST(ShmProtocolTest, WritesReplies) {
  EXPECT_EQ(EncodeRegistered(Handle(), 0x0102),
            "ASHM\1\0\1\0"s + Handle() + "\2\1\0\0\0\0\0\0"s);
  EXPECT_EQ(EncodeUnregistered(), "ASHM\1\0\2\0"s);
  EXPECT_EQ(EncodeShmError(absl::NotFoundError("handle: none")),
            "ASHM\1\0\3\0\5\0\0\0handle: none"s);
  const std::string longest =
      EncodeShmError(absl::InternalError(std::string(5000, 'x')));
  EXPECT_LE(longest.size(), 1024U);
}

TEST(ShmProtocolTest, ReadsItsOwnMessages) {
  EXPECT_TRUE(ParseShmRequest(EncodeRegister(), 1).ok());
  EXPECT_EQ(ParseRegistered(EncodeRegistered(Handle(), 4096)).value(),
            Handle());
  const absl::Status refusal = absl::ResourceExhaustedError("size: too large");
  EXPECT_EQ(ParseRegistered(EncodeShmError(refusal)).status(), refusal);
}

TEST(ShmProtocolTest, RefusesBytesThatAreNoReply) {
  const std::string good = EncodeRegistered(Handle(), 4096);
  for (const std::string& reply :
       {""s, good.substr(0, 8), good.substr(0, 23), EncodeUnregistered(),
        "ASHM\2\0\1\0"s + Handle(), "ASHM\1\0\3\0"s,
        "ASHM\1\0\3\0\0\0\0\0an error without a code"s}) {
    EXPECT_EQ(ParseRegistered(reply).status().code(),
              absl::StatusCode::kInternal);
  }
}

TEST(ShmProtocolTest, TakesNothingElse) {
  constexpr uint64_t kSeed = 7;
  SCOPED_TRACE(kSeed);
  std::mt19937_64 rng(kSeed);
  const std::string good[] = {"ASHM\1\0\1\0"s, "ASHM\1\0\2\0"s + Handle()};
  for (int i = 0; i < 20'000; ++i) {
    const std::string& before = good[rng() % 2];
    std::string message = before;
    Mutate(before, rng, message);
    const size_t descriptors = rng() % 3;
    const auto request = ParseShmRequest(message, descriptors);
    if (!request.ok()) continue;
    // An accepted message can differ from the valid ones only in its handle.
    const bool registers = request->type == ShmRequest::Type::kRegister;
    EXPECT_EQ(message,
              registers ? good[0] : good[1].substr(0, 8) + request->handle);
    EXPECT_EQ(descriptors, registers ? 1U : 0U);
  }
}

}  // namespace
}  // namespace attnd
