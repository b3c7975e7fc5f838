#include "wire/shm_protocol.h"

#include <bit>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace attnd {
namespace {

static_assert(std::endian::native == std::endian::little,
              "numbers are copied as they lie in memory");

constexpr absl::string_view kMagic = "ASHM";
constexpr uint16_t kVersion = 1;
constexpr size_t kHeaderBytes = 8;  // magic, version, type
// An error's text, so that a reply fits any receiver's buffer of 1 KiB.
constexpr size_t kMaxTextBytes = 900;

enum class ReplyType : uint16_t {
  kRegistered = 1,
  kUnregistered = 2,
  kError = 3,
};

template <typename T>
void Append(T number, std::string& text) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &number, sizeof(T));
  text.append(bytes, sizeof(T));
}

// The number at `offset`, of which the caller has seen that it is there.
uint16_t NumberAt(absl::string_view message, size_t offset) {
  uint16_t number = 0;
  std::memcpy(&number, message.data() + offset, sizeof(number));
  return number;
}

std::string Header(ReplyType type) {
  std::string text(kMagic);
  Append(kVersion, text);
  Append(static_cast<uint16_t>(type), text);
  return text;
}

absl::Status Wrong(absl::string_view what, absl::string_view expected,
                   absl::string_view got) {
  return absl::InvalidArgumentError(
      absl::StrCat(what, ": expected ", expected, ", got ", got));
}

}  // namespace

absl::StatusOr<ShmRequest> ParseShmRequest(absl::string_view message,
                                           size_t descriptors) {
  if (message.size() < kHeaderBytes) {
    return Wrong("length", absl::StrCat("at least ", kHeaderBytes, " bytes"),
                 absl::StrCat(message.size()));
  }
  const absl::string_view magic = message.substr(0, kMagic.size());
  if (magic != kMagic) {
    return Wrong("magic", absl::StrCat("\"", kMagic, "\""),
                 absl::StrCat("\"", absl::CHexEscape(magic), "\""));
  }
  const uint16_t version = NumberAt(message, 4);
  if (version != kVersion) {
    return absl::UnimplementedError(
        absl::StrCat("version: expected ", kVersion, ", got ", version));
  }
  ShmRequest request;
  const uint16_t type = NumberAt(message, 6);
  size_t expected_descriptors = 0;
  size_t expected_bytes = kHeaderBytes;
  switch (static_cast<ShmRequest::Type>(type)) {
    case ShmRequest::Type::kRegister:
      expected_descriptors = 1;
      break;
    case ShmRequest::Type::kUnregister:
      expected_bytes += kHandleBytes;
      break;
    default:
      return Wrong("type", "1 (register) or 2 (unregister)",
                   absl::StrCat(type));
  }
  if (message.size() != expected_bytes) {
    return Wrong(
        "length", absl::StrCat(expected_bytes, " bytes for type ", type),
        message.size() > kMaxShmRequestBytes ? "more"
                                             : absl::StrCat(message.size()));
  }
  if (descriptors != expected_descriptors) {
    return Wrong("descriptors",
                 absl::StrCat(expected_descriptors, " for type ", type),
                 descriptors > 1 ? "more" : absl::StrCat(descriptors));
  }
  request.type = static_cast<ShmRequest::Type>(type);
  request.handle = std::string(message.substr(kHeaderBytes));
  return request;
}

std::string EncodeRegistered(absl::string_view handle, int64_t size_bytes) {
  std::string text = Header(ReplyType::kRegistered);
  text.append(handle.data(), handle.size());
  Append(size_bytes, text);
  return text;
}

std::string EncodeUnregistered() { return Header(ReplyType::kUnregistered); }

std::string EncodeShmError(const absl::Status& status) {
  std::string text = Header(ReplyType::kError);
  Append(static_cast<int32_t>(status.code()), text);
  const absl::string_view message = status.message().substr(0, kMaxTextBytes);
  text.append(message.data(), message.size());
  return text;
}

}  // namespace attnd
