#include "client/merge.h"

#include <cstddef>
#include <cstring>
#include <limits>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "base/half_float.h"
#include "base/status_macros.h"
#include "client/error_details.h"
#include "core/merge.h"

namespace attnd::client {
namespace {

absl::Status CheckElements(const std::string& field,
                           const ConstElements& elements, bool f32_only,
                           int64_t count) {
  const DataType type = elements.type();
  if (f32_only ? type != DataType::kF32 : type == DataType::kBool) {
    return FieldError(field, f32_only ? "F32" : "F32, F16 or BF16",
                      NameOf(type));
  }
  const auto element_bytes = static_cast<size_t>(SizeOf(type));
  const size_t bytes = elements.bytes().size();
  if (bytes % element_bytes != 0 ||
      bytes / element_bytes != static_cast<uint64_t>(count)) {
    return FieldError(field, absl::StrCat(count, " elements of ", NameOf(type)),
                      absl::StrCat(bytes, " bytes"));
  }
  return absl::OkStatus();
}

// Finds the rows of an output in memory. Rows are numbered in the order of lse,
// which is [batch, heads, seq] in every layout.
class RowOffsets {
 public:
  RowOffsets(const std::vector<int64_t>& shape, Layout layout)
      : columns_(shape.back()) {
    const size_t rank = shape.size();
    if (layout == Layout::kBshd && rank >= 3) {
      seq_ = shape[rank - 3];
      heads_ = shape[rank - 2];
    }
  }

  // Returns the number of elements before the row with the number `row`.
  int64_t OfRow(int64_t row) const {
    const int64_t seq = row % seq_;
    const int64_t head = row / seq_ % heads_;
    const int64_t batch = row / seq_ / heads_;
    return ((batch * seq_ + seq) * heads_ + head) * columns_;
  }

 private:
  int64_t columns_;
  int64_t heads_ = 1;
  int64_t seq_ = 1;
};

// Converts a row of `elements` to floats. Uses memcpy, because the elements may
// be unaligned.
void ReadRow(const std::byte* elements, DataType type, std::span<float> row) {
  if (row.empty()) return;  // memcpy must not get a null pointer
  if (type == DataType::kF32) {
    std::memcpy(row.data(), elements, row.size_bytes());
    return;
  }
  for (size_t d = 0; d < row.size(); ++d) {
    uint16_t bits = 0;
    std::memcpy(&bits, elements + d * sizeof(bits), sizeof(bits));
    row[d] = type == DataType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
  }
}

void WriteRow(std::span<const float> row, DataType type, std::byte* elements) {
  if (row.empty()) return;
  if (type == DataType::kF32) {
    std::memcpy(elements, row.data(), row.size_bytes());
    return;
  }
  for (size_t d = 0; d < row.size(); ++d) {
    const uint16_t bits =
        type == DataType::kF16 ? F16FromFloat(row[d]) : BF16FromFloat(row[d]);
    std::memcpy(elements + d * sizeof(bits), &bits, sizeof(bits));
  }
}

absl::Status Check(std::span<const AttentionPart> parts,
                   const std::vector<int64_t>& output_shape,
                   const AttentionOutputs& merged, Layout layout) {
  const std::optional<int64_t> elements = ElementCount(output_shape);
  const std::optional<int64_t> rows =
      ElementCount(LseShape(output_shape, layout));
  if (output_shape.size() < 2 || output_shape.size() > 4 || !elements ||
      !rows) {
    return FieldError(
        "output_shape",
        "two to four extents of 0 or more with a product below 2^63",
        absl::StrCat("[", absl::StrJoin(output_shape, ", "), "]"));
  }
  ATTND_RETURN_IF_ERROR(CheckElements("merged.output", merged.output,
                                      /*f32_only=*/false, *elements));
  if (merged.lse) {
    ATTND_RETURN_IF_ERROR(
        CheckElements("merged.lse", *merged.lse, /*f32_only=*/true, *rows));
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string part = absl::StrCat("parts[", i, "].");
    ATTND_RETURN_IF_ERROR(CheckElements(part + "output", parts[i].output,
                                        /*f32_only=*/false, *elements));
    ATTND_RETURN_IF_ERROR(
        CheckElements(part + "lse", parts[i].lse, /*f32_only=*/true, *rows));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status MergeAttention(std::span<const AttentionPart> parts,
                            const std::vector<int64_t>& output_shape,
                            const AttentionOutputs& merged, Layout layout) {
  ATTND_RETURN_IF_ERROR(Check(parts, output_shape, merged, layout));
  const int64_t num_rows = *ElementCount(LseShape(output_shape, layout));
  // Without rows, the number of columns has no limit, and the buffers below
  // could be too large for memory.
  if (num_rows == 0) return absl::OkStatus();
  const auto columns = static_cast<size_t>(output_shape.back());
  const RowOffsets offsets(output_shape, layout);
  // These hold one row of each part as floats.
  std::vector<float> outputs(parts.size() * columns);
  std::vector<float> lses(parts.size());
  std::vector<PartialResult> partials;
  partials.reserve(parts.size());
  for (size_t p = 0; p < parts.size(); ++p) {
    partials.push_back({outputs.data() + p * columns, lses.data() + p});
  }
  std::vector<float> output(columns);
  float lse = 0;
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t first = offsets.OfRow(row);
    const int64_t lse_offset = row * SizeOf(DataType::kF32);
    for (size_t p = 0; p < parts.size(); ++p) {
      ReadRow(parts[p].lse.bytes().data() + lse_offset, DataType::kF32,
              std::span(lses).subspan(p, 1));
      if (lses[p] == -std::numeric_limits<float>::infinity()) continue;
      const ConstElements& part = parts[p].output;
      ReadRow(part.bytes().data() + first * SizeOf(part.type()), part.type(),
              std::span(outputs).subspan(p * columns, columns));
    }
    MergePartials(partials, 1, output_shape.back(), output.data(), &lse);
    const DataType type = merged.output.type();
    WriteRow(output, type, merged.output.bytes().data() + first * SizeOf(type));
    if (merged.lse) {
      WriteRow({&lse, 1}, DataType::kF32,
               merged.lse->bytes().data() + lse_offset);
    }
  }
  return absl::OkStatus();
}

}  // namespace attnd::client
