#include "wire/shm_protocol.h"

#include <bit>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/field_error.h"

namespace attnd {
namespace {

static_assert(std::endian::native == std::endian::little,
              "numbers are copied in the byte order of memory");

constexpr absl::string_view kMagic = "ASHM";
constexpr uint16_t kVersion = 1;
constexpr size_t kHeaderBytes = 8;  // magic, version, type
// The longest text of an error, so that a reply fits kMaxShmReplyBytes.
constexpr size_t kMaxTextBytes = 900;

// The type of a reply that reports an error. Any other reply has the type of
// its request, which is one of ShmRequest::Type.
constexpr uint16_t kErrorType = 3;

template <typename T>
void Append(T number, std::string& text) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &number, sizeof(T));
  text.append(bytes, sizeof(T));
}

// Returns the number at `offset`, which lies within the message.
template <typename T>
T NumberAt(absl::string_view message, size_t offset) {
  T number = 0;
  std::memcpy(&number, message.data() + offset, sizeof(T));
  return number;
}

std::string Header(uint16_t type) {
  std::string text(kMagic);
  Append(kVersion, text);
  Append(type, text);
  return text;
}

std::string Header(ShmRequest::Type type) {
  return Header(static_cast<uint16_t>(type));
}

}  // namespace

absl::StatusOr<ShmRequest> ParseShmRequest(absl::string_view message,
                                           size_t descriptors) {
  if (message.size() < kHeaderBytes) {
    return FieldError("length",
                      absl::StrCat("at least ", kHeaderBytes, " bytes"),
                      absl::StrCat(message.size()));
  }
  const absl::string_view magic = message.substr(0, kMagic.size());
  if (magic != kMagic) {
    return FieldError("magic", absl::StrCat("\"", kMagic, "\""),
                      absl::StrCat("\"", absl::CHexEscape(magic), "\""));
  }
  const auto version = NumberAt<uint16_t>(message, 4);
  if (version != kVersion) {
    return absl::UnimplementedError(
        absl::StrCat("version: expected ", kVersion, ", got ", version));
  }
  ShmRequest request;
  const auto type = NumberAt<uint16_t>(message, 6);
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
      return FieldError("type", "1 (register) or 2 (unregister)",
                        absl::StrCat(type));
  }
  if (message.size() != expected_bytes) {
    return FieldError(
        "length", absl::StrCat(expected_bytes, " bytes for type ", type),
        message.size() > kMaxShmRequestBytes ? "more"
                                             : absl::StrCat(message.size()));
  }
  if (descriptors != expected_descriptors) {
    return FieldError("descriptors",
                      absl::StrCat(expected_descriptors, " for type ", type),
                      descriptors > 1 ? "more" : absl::StrCat(descriptors));
  }
  request.type = static_cast<ShmRequest::Type>(type);
  request.handle = std::string(message.substr(kHeaderBytes));
  return request;
}

std::string EncodeRegister() { return Header(ShmRequest::Type::kRegister); }

std::string EncodeRegistered(absl::string_view handle, int64_t size_bytes) {
  std::string text = Header(ShmRequest::Type::kRegister);
  text.append(handle.data(), handle.size());
  Append(size_bytes, text);
  return text;
}

std::string EncodeUnregistered() {
  return Header(ShmRequest::Type::kUnregister);
}

std::string EncodeShmError(const absl::Status& status) {
  std::string text = Header(kErrorType);
  Append(static_cast<int32_t>(status.code()), text);
  const absl::string_view message = status.message().substr(0, kMaxTextBytes);
  text.append(message.data(), message.size());
  return text;
}

absl::StatusOr<std::string> ParseRegistered(absl::string_view reply) {
  const absl::string_view header = reply.substr(0, kHeaderBytes);
  const absl::string_view body = reply.substr(header.size());
  int32_t code = 0;
  if (header == EncodeRegister() && body.size() >= kHandleBytes) {
    return std::string(body.substr(0, kHandleBytes));
  }
  if (header == Header(kErrorType) && body.size() >= sizeof(code)) {
    code = NumberAt<int32_t>(body, 0);
    if (code != 0) {
      return absl::Status(static_cast<absl::StatusCode>(code),
                          body.substr(sizeof(code)));
    }
  }
  return absl::InternalError(
      "the shared-memory socket sent bytes that are not a reply");
}

}  // namespace attnd
