#include "client/attnctl/npy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "client/attnctl/byte_file.h"
#include "client/attnctl/elements.h"
#include "client/types.h"
#include "core/machine.h"

namespace attnd::attnctl {
namespace {

static_assert(std::endian::native == std::endian::little,
              "elements of files have the byte order of this machine");

constexpr absl::string_view kMagic("\x93NUMPY", 6);
// A header is padded to a multiple of this size, as NumPy does.
constexpr size_t kAlignment = 64;
// Any header of an array of floats is much smaller.
constexpr size_t kMaxHeaderBytes = 1 << 16;

// The number of bytes that are read at a time. It is a multiple of the size of
// each type of elements.
constexpr int64_t kBlockBytes = 1 << 18;

// The type of the elements of a file.
struct ElementType {
  std::optional<client::DataType> tensor;  // unset = float64
  int64_t size_bytes = 0;
};

// Returns the type that `descr` of a header names. Accepts the names that NumPy
// writes, and those that its dtype() accepts for the same types. Returns
// nullopt for other types and for big-endian ones.
std::optional<ElementType> TypeOf(absl::string_view descr) {
  using client::DataType;
  static constexpr std::pair<absl::string_view, DataType> kTensors[] = {
      {"f4", DataType::kF32},      {"f", DataType::kF32},
      {"float32", DataType::kF32}, {"f2", DataType::kF16},
      {"e", DataType::kF16},       {"float16", DataType::kF16},
      {"V2", DataType::kBF16},     {"b1", DataType::kBool},
      {"?", DataType::kBool},      {"bool", DataType::kBool}};
  if (!descr.empty() && absl::StrContains("<=|", descr[0])) {
    descr.remove_prefix(1);
  }
  for (const auto& [name, type] : kTensors) {
    if (descr == name) return ElementType{type, client::SizeOf(type)};
  }
  if (descr == "f8" || descr == "d" || descr == "float64") {
    return ElementType{std::nullopt, sizeof(double)};
  }
  return std::nullopt;
}

absl::string_view DescrOf(client::DataType dtype) {
  switch (dtype) {
    case client::DataType::kF32:
      return "<f4";
    case client::DataType::kF16:
      return "<f2";
    case client::DataType::kBF16:
      return "<V2";
    case client::DataType::kBool:
      return "|b1";
  }
  return "";
}

struct Header {
  std::string descr;
  std::vector<int64_t> shape;
};

absl::Status Malformed(const std::string& path, absl::string_view expected,
                       absl::string_view got) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": expected ", expected, ", got ", got));
}

absl::Status NoMemoryFor(const std::string& path, int64_t size_bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(
      path, ": there is not enough memory for its ", size_bytes, " bytes"));
}

// Parses a header, which is a Python literal such as "{'descr': '<f4',
// 'fortran_order': False, 'shape': (12, 331, 32), }". It must have exactly
// these three keys, in any order. Python 2 wrote long integers, "(12L, 331L,
// 32L)", and could write u'<f4'.
class HeaderParser {
 public:
  explicit HeaderParser(absl::string_view text) : rest_(text) {}

  std::optional<Header> Parse() {
    if (!Eat("{")) return std::nullopt;
    while (!Eat("}")) {
      const auto key = String();
      if (!key || !Eat(":") || !Value(*key)) return std::nullopt;
      if (!Eat(",") && !Peek("}")) return std::nullopt;
    }
    SkipSpace();
    if (!rest_.empty() || !descr_ || !shape_ || !fortran_order_) {
      return std::nullopt;
    }
    return Header{*descr_, *shape_};
  }

  bool fortran_order() const { return fortran_order_.value_or(false); }

 private:
  void SkipSpace() { rest_ = absl::StripLeadingAsciiWhitespace(rest_); }

  bool Peek(absl::string_view token) {
    SkipSpace();
    return absl::StartsWith(rest_, token);
  }

  bool Eat(absl::string_view token) {
    SkipSpace();
    return absl::ConsumePrefix(&rest_, token);
  }

  std::optional<std::string> String() {
    Eat("u");
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) {
      return std::nullopt;
    }
    const size_t end = rest_.find(rest_[0], 1);
    if (end == absl::string_view::npos) return std::nullopt;
    std::string value(rest_.substr(1, end - 1));
    rest_.remove_prefix(end + 1);
    return value;
  }

  bool Value(const std::string& key) {
    if (key == "descr" && !descr_) {
      descr_ = String();
      return descr_.has_value();
    }
    if (key == "fortran_order" && !fortran_order_) {
      if (Eat("False")) {
        fortran_order_ = false;
      } else if (Eat("True")) {
        fortran_order_ = true;
      }
      return fortran_order_.has_value();
    }
    if (key == "shape" && !shape_) return Shape();
    return false;
  }

  // "()", "(5,)" or "(2, 3)".
  bool Shape() {
    if (!Eat("(")) return false;
    const size_t end = rest_.find(')');
    if (end == absl::string_view::npos) return false;
    absl::string_view list = absl::StripAsciiWhitespace(rest_.substr(0, end));
    rest_.remove_prefix(end + 1);
    shape_.emplace();
    if (list.empty()) return true;
    const bool trailing_comma = absl::ConsumeSuffix(&list, ",");
    for (absl::string_view item : absl::StrSplit(list, ',')) {
      int64_t extent = 0;
      item = absl::StripAsciiWhitespace(item);
      absl::ConsumeSuffix(&item, "L");
      if (!absl::SimpleAtoi(item, &extent) || extent < 0) return false;
      shape_->push_back(extent);
    }
    return trailing_comma || shape_->size() > 1;
  }

  absl::string_view rest_;
  std::optional<std::string> descr_;
  std::optional<bool> fortran_order_;
  std::optional<std::vector<int64_t>> shape_;
};

// An open file of which the header has been read, but not the elements.
class NpyFile {
 public:
  static absl::StatusOr<NpyFile> Open(const std::string& path) {
    ATTND_ASSIGN_OR_RETURN(ByteFile bytes, ByteFile::OpenToRead(path));
    NpyFile file(path, std::move(bytes));
    ATTND_RETURN_IF_ERROR(file.ReadHeader());
    return file;
  }

  const Header& header() const { return header_; }

  // Reads the elements, which have the type `type`. Passes one block at a time
  // to `append`, which adds it to `result`, so that memory is used only as
  // elements arrive. Returns RESOURCE_EXHAUSTED before it reads anything if the
  // result of `results_per_element` values per element is larger than the
  // available memory.
  template <typename T, typename AppendBlock>
  absl::Status ReadElements(const ElementType& type, size_t results_per_element,
                            std::vector<T>& result, AppendBlock append) {
    const auto count = client::ElementCount(header_.shape);
    if (!count) {
      return Malformed(
          path_, "a shape with fewer than 2^63 elements",
          absl::StrCat("[", absl::StrJoin(header_.shape, ", "), "]"));
    }
    int64_t result_bytes = 0;
    if (__builtin_mul_overflow(*count, results_per_element * sizeof(T),
                               &result_bytes)) {
      result_bytes = std::numeric_limits<int64_t>::max();
    }
    if (result_bytes > AvailableMemoryBytes()) {
      return NoMemoryFor(path_, result_bytes);
    }
    try {
      result.reserve(static_cast<size_t>(*count) * results_per_element);
      std::vector<std::byte> block;
      for (int64_t left = *count; left > 0;) {
        const int64_t now = std::min(left, kBlockBytes / type.size_bytes);
        block.resize(static_cast<size_t>(now * type.size_bytes));
        ATTND_ASSIGN_OR_RETURN(const size_t got, bytes_.Read(block));
        if (got < block.size()) {
          return Malformed(
              path_, DescribeElements(type, *count),
              absl::StrCat("only ", (*count - left) * type.size_bytes +
                                        static_cast<int64_t>(got)));
        }
        append(block);
        left -= now;
      }
    } catch (const std::bad_alloc&) {
      return NoMemoryFor(path_, result_bytes);
    }
    std::byte more;
    ATTND_ASSIGN_OR_RETURN(const size_t got, bytes_.Read({&more, 1}));
    if (got == 0) return absl::OkStatus();
    return Malformed(path_, DescribeElements(type, *count),
                     "more bytes after them");
  }

 private:
  NpyFile(std::string path, ByteFile bytes)
      : path_(std::move(path)), bytes_(std::move(bytes)) {}

  // Returns "24 bytes of elements (4 bytes each, shape [2, 3])".
  std::string DescribeElements(const ElementType& type, int64_t count) const {
    return absl::StrCat(count * type.size_bytes, " bytes of elements (",
                        type.size_bytes, " bytes each, shape [",
                        absl::StrJoin(header_.shape, ", "), "])");
  }

  absl::Status ReadHeader() {
    std::array<char, 8> fixed = {};
    ATTND_ASSIGN_OR_RETURN(size_t got, Read(fixed));
    if (got == 0) {
      return Malformed(path_, "a .npy file",
                       "no bytes; a pipe can be read only once");
    }
    const absl::string_view magic(fixed.data(), kMagic.size());
    if (got < fixed.size() || magic != kMagic) {
      return Malformed(path_, "a .npy file, as np.save writes it",
                       absl::StartsWith(magic, "PK")
                           ? "an archive of np.savez; save each array with "
                             "np.save"
                           : "a file that does not begin with \\x93NUMPY");
    }
    const int version = static_cast<unsigned char>(fixed[6]);
    if (version < 1 || version > 3 || fixed[7] != 0) {
      return Malformed(
          path_, "format version 1.0, 2.0 or 3.0",
          absl::StrCat(version, ".", static_cast<unsigned char>(fixed[7])));
    }
    std::array<char, 4> length = {};
    ATTND_ASSIGN_OR_RETURN(got,
                           Read(std::span(length).first(version == 1 ? 2 : 4)));
    const auto header_bytes = std::bit_cast<uint32_t>(length);
    if (header_bytes > kMaxHeaderBytes) {
      return Malformed(path_, "a header of at most 65536 bytes",
                       absl::StrCat(header_bytes));
    }
    std::string text(header_bytes, '\0');
    ATTND_ASSIGN_OR_RETURN(got, Read(text));
    if (got < text.size() || text.empty()) {
      return Malformed(path_, "a complete header", "the end of the file");
    }
    HeaderParser parser(text);
    auto header = parser.Parse();
    if (!header) {
      return Malformed(path_,
                       "a header with descr, fortran_order and shape, where "
                       "descr is a single type",
                       text.substr(0, 80));
    }
    if (parser.fortran_order()) {
      return Malformed(
          path_, "C order",
          "Fortran order; save np.ascontiguousarray(array) instead");
    }
    header_ = *std::move(header);
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> Read(std::span<char> text) {
    return bytes_.Read(std::as_writable_bytes(text));
  }

  std::string path_;
  ByteFile bytes_;
  Header header_;
};

template <typename T>
void Append(const std::vector<T>& from, std::vector<T>& to) {
  to.insert(to.end(), from.begin(), from.end());
}

std::vector<double> ToDoubles(const ElementType& type,
                              std::span<const std::byte> bytes) {
  if (type.tensor) {
    const std::vector<float> floats = ToFloats(*type.tensor, bytes);
    return {floats.begin(), floats.end()};
  }
  std::vector<double> doubles(bytes.size() / sizeof(double));
  std::memcpy(doubles.data(), bytes.data(), bytes.size());
  return doubles;
}

}  // namespace

absl::StatusOr<client::ConstTensor> ReadNpy(const std::string& path,
                                            const Rounding& rounding) {
  auto file = NpyFile::Open(path);
  if (!file.ok()) return file.status();
  const std::string& descr = file->header().descr;
  const auto type = TypeOf(descr);
  if (!type) {
    return Malformed(
        path,
        "little-endian float32 ('<f4'), float16 ('<f2'), bfloat16 ('<V2') or "
        "bool ('|b1')",
        absl::StrCat("'", descr,
                     "'; save array.astype('<f4'), or array.astype(bool) for a "
                     "mask"));
  }
  if (!type->tensor && !rounding.to) {
    return Malformed(
        path, "float32, float16 or bfloat16",
        absl::StrCat("float64 ('", descr,
                     "'); add --dtype=f32, f16 or bf16 to round it"));
  }
  const bool rounds = rounding.to && type->tensor != client::DataType::kBool &&
                      type->tensor != rounding.to &&
                      !(type->tensor && rounding.only_float64);
  const client::DataType dtype = rounds ? *rounding.to : *type->tensor;
  const auto bytes = std::make_shared<std::vector<std::byte>>();
  ATTND_RETURN_IF_ERROR(file->ReadElements(
      *type, static_cast<size_t>(SizeOf(dtype)), *bytes,
      [&](const std::vector<std::byte>& block) {
        if (rounds) {
          Append(FromDoubles(dtype, ToDoubles(*type, block)), *bytes);
        } else {
          Append(block, *bytes);
        }
      }));
  return client::ConstTensor{
      client::ConstElements(dtype, *bytes).OwnedBy(bytes),
      file->header().shape};
}

absl::StatusOr<NpyDoubles> ReadNpyAsDouble(const std::string& path) {
  ATTND_ASSIGN_OR_RETURN(NpyFile file, NpyFile::Open(path));
  const std::string& descr = file.header().descr;
  const auto type = TypeOf(descr);
  if (!type || type->tensor == client::DataType::kBool) {
    return Malformed(
        path,
        "little-endian float64 ('<f8'), float32 ('<f4'), float16 ('<f2') or "
        "bfloat16 ('<V2')",
        absl::StrCat("'", descr, "'; save array.astype('<f8')"));
  }
  NpyDoubles doubles{.shape = file.header().shape, .values = {}};
  ATTND_RETURN_IF_ERROR(file.ReadElements(
      *type, 1, doubles.values, [&](const std::vector<std::byte>& block) {
        Append(ToDoubles(*type, block), doubles.values);
      }));
  return doubles;
}

absl::Status WriteNpy(const std::string& path, client::DataType dtype,
                      const std::vector<int64_t>& shape,
                      std::span<const std::byte> bytes) {
  const auto count = client::ElementCount(shape);
  const auto element_bytes = static_cast<uint64_t>(client::SizeOf(dtype));
  if (!count || static_cast<uint64_t>(*count) != bytes.size() / element_bytes) {
    return absl::InternalError(
        absl::StrCat(path, ": expected as many elements as the shape [",
                     absl::StrJoin(shape, ", "), "] has, got ",
                     bytes.size() / element_bytes));
  }
  std::string text = absl::StrCat(
      "{'descr': '", DescrOf(dtype), "', 'fortran_order': False, 'shape': (",
      absl::StrJoin(shape, ", "), shape.size() == 1 ? ",), }" : "), }");
  const size_t prefix_bytes = kMagic.size() + 4;
  const size_t unpadded_bytes = prefix_bytes + text.size() + 1;
  text.append((kAlignment - unpadded_bytes % kAlignment) % kAlignment, ' ');
  text.push_back('\n');

  ATTND_ASSIGN_OR_RETURN(ByteFile file, ByteFile::OpenToWrite(path));
  const std::string header =
      absl::StrCat(kMagic, absl::string_view("\x01\0", 2),
                   std::string{static_cast<char>(text.size() & 0xff),
                               static_cast<char>(text.size() >> 8)},
                   text);
  // If writing fails, do not remove `path`, because it may be a device or a
  // pipe.
  ATTND_RETURN_IF_ERROR(file.Write(std::as_bytes(std::span(header))));
  ATTND_RETURN_IF_ERROR(file.Write(bytes));
  return file.Close();
}

}  // namespace attnd::attnctl
