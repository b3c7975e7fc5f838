// What the client reads from answers against what protobuf reads. An input is a
// byte that picks the reader, one that says how long its blocks are, and the
// answer: of a stream, messages that each follow a byte with their length; of a
// refusal, its details.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "client/error_details.h"
#include "tests/client/answer_check.h"
#include "tests/client/error_status.h"
#include "tests/fuzz/fuzz_target.h"

namespace attnd::client {
namespace {

std::vector<std::string> Messages(const std::string& input) {
  std::vector<std::string> messages;
  for (size_t at = 0; at < input.size();) {
    const auto size = static_cast<uint8_t>(input[at]);
    messages.push_back(input.substr(at + 1, size));
    at += 1 + size_t{size};
  }
  return messages;
}

std::string StreamInput() {
  std::string input("\1\6", 2);
  for (const std::string& message : GoodStream()) {
    input += static_cast<char>(message.size());
    input += message;
  }
  return input;
}

std::string RefusalInput() {
  return std::string("\2\6", 2) +
         SerializedRefusal("REASON", "query", "expected", absl::Seconds(1));
}

// Returns whether both read the same details, or protobuf reads none.
bool DetailsAgree(const std::string& bytes) {
  absl::Status status = absl::InternalError("");
  status.SetPayload(kStatusPayloadUrl, absl::Cord(bytes));
  const ErrorDetails details = DetailsOf(status);
  const auto expected = DetailsByProtobuf(bytes);
  if (!expected) return true;
  bool equal =
      details.reason == expected->reason &&
      details.domain == expected->domain &&
      details.retry_delay == expected->retry_delay &&
      details.field_violations.size() == expected->field_violations.size();
  for (size_t i = 0; equal && i < details.field_violations.size(); ++i) {
    equal = details.field_violations[i].field ==
                expected->field_violations[i].field &&
            details.field_violations[i].description ==
                expected->field_violations[i].description;
  }
  return equal;
}

}  // namespace
}  // namespace attnd::client

std::vector<std::string> attnd::fuzz::Seeds() {
  return {std::string("\0\6", 2) + client::GoodReply(), client::StreamInput(),
          client::RefusalInput()};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string answer(reinterpret_cast<const char*>(data) + 2, size - 2);
  if (data[0] % 3 == 2) {
    attnd::fuzz::Require(attnd::client::DetailsAgree(answer),
                         "both read the same details");
    return 0;
  }
  const size_t block_bytes = 1 + data[1] % 64;
  const attnd::client::AnswerCheck check =
      data[0] % 3 == 0 ? attnd::client::CheckReply(answer, block_bytes)
                       : attnd::client::CheckStream(
                             attnd::client::Messages(answer), block_bytes);
  attnd::fuzz::Require(!check.accepted || check.good,
                       "protobuf takes what the client takes");
  attnd::fuzz::Require(!check.accepted || check.equal,
                       "both read the same elements");
  return 0;
}
