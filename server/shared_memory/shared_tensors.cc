#include "server/shared_memory/shared_tensors.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "server/status/status_convert.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

constexpr char kOutputField[] = "options.output_region";
constexpr char kLseField[] = "options.lse_region";

absl::StatusOr<SharedPart> FindPart(const v1::SharedMemory& place,
                                    absl::string_view path,
                                    absl::string_view name, int64_t size_bytes,
                                    const RegionRegistry* registry) {
  if (registry == nullptr) {
    return RefuseField(absl::StatusCode::kFailedPrecondition,
                       absl::StrCat(path, name),
                       "shared memory is off (--shm-socket)", kSharedMemoryOff);
  }
  SharedPart part{.region = registry->Find(place.handle()),
                  .offset_bytes = place.offset_bytes(),
                  .size_bytes = size_bytes};
  if (part.region == nullptr) {
    return RefuseField(
        absl::StatusCode::kNotFound, absl::StrCat(path, name, ".handle"),
        "there is no such region: it was never registered, or the connection "
        "that registered it is closed",
        kUnknownRegion);
  }
  // Does not add offset and size, because the sum could overflow.
  const int64_t max_offset_bytes = part.region->size_bytes() - size_bytes;
  if (part.offset_bytes > max_offset_bytes) {
    return FieldError(
        absl::StrCat(path, name, ".offset_bytes"),
        max_offset_bytes < 0
            ? absl::StrCat("a region of at least ", size_bytes, " bytes")
            : absl::StrCat("at most ", max_offset_bytes, ", so that ",
                           size_bytes, " bytes fit the region's ",
                           part.region->size_bytes()),
        max_offset_bytes < 0
            ? absl::StrCat("one of ", part.region->size_bytes())
            : absl::StrCat(part.offset_bytes));
  }
  return part;
}

absl::StatusOr<SharedPart> FindTarget(const v1::SharedMemory& place,
                                      absl::string_view field,
                                      int64_t size_bytes,
                                      const RegionRegistry* registry) {
  absl::StatusOr<SharedPart> part =
      FindPart(place, field, "", size_bytes, registry);
  if (part.ok() && part->region->writable_data() == nullptr) {
    return FieldError(absl::StrCat(field, ".handle"),
                      "a region that the server may write to",
                      "one that is sealed against writes or was opened "
                      "read-only");
  }
  return part;
}

bool Overlap(const SharedPart& a, const SharedPart& b) {
  return a.region != nullptr && a.region == b.region && a.size_bytes > 0 &&
         b.size_bytes > 0 && a.offset_bytes < b.offset_bytes + b.size_bytes &&
         b.offset_bytes < a.offset_bytes + a.size_bytes;
}

// An output must not overlap with an input, because a kernel writes some rows
// of the output before it has read the inputs of others.
absl::Status CheckApart(const SharedPart& target, absl::string_view field,
                        const SharedPart& other, absl::string_view name) {
  if (!Overlap(target, other)) return absl::OkStatus();
  return FieldError(absl::StrCat(field, ".offset_bytes"),
                    absl::StrCat("an offset at which ", target.size_bytes,
                                 " bytes do not overlap ", name,
                                 ", which is at ", other.offset_bytes, " to ",
                                 other.offset_bytes + other.size_bytes),
                    absl::StrCat(target.offset_bytes));
}

}  // namespace

absl::StatusOr<SharedTensors> FindSharedTensors(
    const AttentionTensors& tensors, const DecodedRequest& decoded,
    const RegionRegistry* registry) {
  SharedTensors shared;
  for (size_t role = 0; role < kTensorRoles; ++role) {
    const auto& [path, tensor] = tensors.by_role[role];
    if (tensor == nullptr || !tensor->has_shared_memory()) continue;
    ATTND_ASSIGN_OR_RETURN(
        shared.inputs[role],
        FindPart(tensor->shared_memory(), path, ".shared_memory",
                 decoded.bytes[role], registry));
  }
  if (decoded.kind != PayloadKind::kSharedMemory) return shared;

  ATTND_ASSIGN_OR_RETURN(
      shared.output, FindTarget(tensors.options->output_region(), kOutputField,
                                decoded.problem.output_bytes(), registry));
  if (decoded.problem.params().return_lse) {
    ATTND_ASSIGN_OR_RETURN(shared.lse,
                           FindTarget(tensors.options->lse_region(), kLseField,
                                      decoded.problem.lse_bytes(), registry));
  }
  absl::Status apart =
      CheckApart(shared.lse, kLseField, shared.output, kOutputField);
  for (size_t role = 0; role < kTensorRoles; ++role) {
    const SharedPart& input = shared.inputs[role];
    const char* const name = tensors.by_role[role].path;
    apart.Update(CheckApart(shared.output, kOutputField, input, name));
    apart.Update(CheckApart(shared.lse, kLseField, input, name));
  }
  ATTND_RETURN_IF_ERROR(apart);
  return shared;
}

}  // namespace attnd::server
