#include "base/field_error.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attnd {
namespace {

constexpr absl::string_view kFieldPayload = "attnd/field";
constexpr absl::string_view kReasonPayload = "attnd/reason";

// On Debian 12, absl::string_view is not std::string_view.
absl::string_view ToAbsl(std::string_view text) {
  return {text.data(), text.size()};
}

std::optional<std::string> PayloadOf(const absl::Status& status,
                                     absl::string_view type) {
  if (auto payload = status.GetPayload(type)) return std::string(*payload);
  return std::nullopt;
}

}  // namespace

std::string ExpectedGot(absl::string_view expected, absl::string_view got) {
  return absl::StrCat("expected ", expected, ", got ", got);
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status FieldError(std::string_view field, std::string_view expected,
                        std::string_view got) {
  absl::Status status = absl::InvalidArgumentError(absl::StrCat(
      ToAbsl(field), ": ", ExpectedGot(ToAbsl(expected), ToAbsl(got))));
  status.SetPayload(kFieldPayload, absl::Cord(ToAbsl(field)));
  return status;
}

std::optional<std::string> FieldOf(const absl::Status& status) {
  return PayloadOf(status, kFieldPayload);
}

absl::Status WithField(const absl::Status& status, std::string_view field) {
  const std::optional<std::string> old = FieldOf(status);
  if (!old) return status;
  const absl::string_view rest = absl::StripPrefix(status.message(), *old);
  absl::Status renamed(status.code(), absl::StrCat(ToAbsl(field), rest));
  status.ForEachPayload([&](absl::string_view type, const absl::Cord& payload) {
    renamed.SetPayload(type, payload);
  });
  renamed.SetPayload(kFieldPayload, absl::Cord(ToAbsl(field)));
  return renamed;
}

absl::Status WithReason(absl::Status status, std::string_view reason) {
  status.SetPayload(kReasonPayload, absl::Cord(ToAbsl(reason)));
  return status;
}

std::optional<std::string> ReasonOf(const absl::Status& status) {
  return PayloadOf(status, kReasonPayload);
}

}  // namespace attnd
