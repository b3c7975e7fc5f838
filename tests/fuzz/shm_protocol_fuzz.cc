// Messages on the shared-memory socket against docs/shared-memory.md. An input
// is a byte that counts the descriptors, and the message, which is read as a
// request and as a reply.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "tests/fuzz/fuzz_target.h"
#include "wire/shm_protocol.h"

namespace attnd {
namespace {

using fuzz::Require;

constexpr absl::string_view kRegister("ASHM\1\0\1\0", 8);
constexpr absl::string_view kUnregister("ASHM\1\0\2\0", 8);

bool Good(absl::string_view message, size_t descriptors) {
  if (descriptors == 1) return message == kRegister;
  return descriptors == 0 && absl::StartsWith(message, kUnregister) &&
         message.size() == kUnregister.size() + kHandleBytes;
}

bool Ascii(absl::string_view text) {
  for (const char c : text) {
    if (c < ' ' || c > '~') return false;
  }
  return true;
}

void CheckRefusal(const absl::Status& status) {
  Require(absl::IsInvalidArgument(status) || absl::IsUnimplemented(status),
          "a refusal is INVALID_ARGUMENT or UNIMPLEMENTED");
  Require(absl::StrContains(status.message(), ": expected "),
          "a refusal says what was expected");
  const std::string reply = EncodeShmError(status);
  constexpr size_t kTextAt = 12;
  Require(reply.size() > kTextAt && reply.size() <= kMaxShmReplyBytes,
          "a reply fits its receiver");
  Require(Ascii(absl::string_view(reply).substr(kTextAt)),
          "an error's text is ASCII");
  // A reply carries no payloads.
  const absl::Status received = ParseRegistered(reply).status();
  Require(received.code() == status.code() &&
              received.message() ==
                  status.message().substr(0, received.message().size()),
          "the client reads the error that the server wrote");
}

void CheckReply(absl::string_view reply) {
  const absl::StatusOr<std::string> handle = ParseRegistered(reply);
  Require(!handle.ok() || handle->size() == kHandleBytes,
          "a handle has its size");
}

void Check(absl::string_view message, size_t descriptors) {
  CheckReply(message);
  const absl::StatusOr<ShmRequest> request =
      ParseShmRequest(message, descriptors);
  Require(request.ok() == Good(message, descriptors),
          "what the page describes is accepted, and nothing else");
  if (!request.ok()) return CheckRefusal(request.status());
  Require((request->type == ShmRequest::Type::kRegister) == (descriptors == 1),
          "the type is what was asked for");
  Require(request->handle == message.substr(kRegister.size()),
          "the handle is what was sent");
}

}  // namespace
}  // namespace attnd

std::vector<std::string> attnd::fuzz::Seeds() {
  return {absl::StrCat("\1", attnd::kRegister),
          absl::StrCat(absl::string_view("\0", 1), kUnregister,
                       "0123456789abcdef")};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  attnd::Check({reinterpret_cast<const char*>(data) + 1, size - 1}, data[0]);
  return 0;
}
