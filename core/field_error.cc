#include "core/field_error.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace attnd {
namespace {

constexpr std::string_view kFieldPayload = "attnd/field";
constexpr std::string_view kReasonPayload = "attnd/reason";

std::optional<std::string> PayloadOf(const absl::Status& status,
                                     std::string_view type) {
  if (auto payload = status.GetPayload(type)) return std::string(*payload);
  return std::nullopt;
}

}  // namespace

absl::Status FieldError(std::string_view field, std::string_view expected,
                        std::string_view got) {
  absl::Status status = absl::InvalidArgumentError(
      absl::StrCat(field, ": expected ", expected, ", got ", got));
  status.SetPayload(kFieldPayload, absl::Cord(field));
  return status;
}

std::optional<std::string> FieldOf(const absl::Status& status) {
  return PayloadOf(status, kFieldPayload);
}

absl::Status WithField(const absl::Status& status, std::string_view field) {
  const std::optional<std::string> old = FieldOf(status);
  if (!old) return status;
  std::string_view rest = status.message();
  if (rest.substr(0, old->size()) == *old) rest.remove_prefix(old->size());
  absl::Status renamed(status.code(), absl::StrCat(field, rest));
  status.ForEachPayload([&](std::string_view type, const absl::Cord& payload) {
    renamed.SetPayload(type, payload);
  });
  renamed.SetPayload(kFieldPayload, absl::Cord(field));
  return renamed;
}

absl::Status WithReason(absl::Status status, std::string_view reason) {
  status.SetPayload(kReasonPayload, absl::Cord(reason));
  return status;
}

std::optional<std::string> ReasonOf(const absl::Status& status) {
  return PayloadOf(status, kReasonPayload);
}

}  // namespace attnd
