#include "client/attnctl/npy.h"

#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <new>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "client/attnctl/elements.h"
#include "client/types.h"

namespace attnd::attnctl {
namespace {

static_assert(std::endian::native == std::endian::little,
              "elements are read and written as they lie in memory");

constexpr absl::string_view kMagic("\x93NUMPY", 6);
// A header of ours ends on this boundary, as NumPy's do.
constexpr size_t kAlignment = 64;
// Far above any header of a float array; a larger one is no honest file.
constexpr size_t kMaxHeaderBytes = 1 << 16;

// How NumPy names the types that are tensors.
std::optional<client::DataType> TypeOf(absl::string_view descr) {
  if (descr == "<f4") return client::DataType::kF32;
  if (descr == "<f2") return client::DataType::kF16;
  if (descr == "<V2" || descr == "|V2") return client::DataType::kBF16;
  if (descr == "|b1") return client::DataType::kBool;
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

absl::Status SystemError(const std::string& path, absl::string_view what) {
  const int error = errno;
  return absl::ErrnoToStatus(error, absl::StrCat(path, ": ", what));
}

// Reads the Python literal of a header, "{'descr': '<f4', 'fortran_order':
// False, 'shape': (12, 331, 32), }": three keys in any order, nothing else.
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
    SkipSpace();
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

// A file whose header has been read; the elements come next.
class NpyFile {
 public:
  static absl::StatusOr<NpyFile> Open(const std::string& path) {
    NpyFile file;
    file.path_ = path;
    file.stream_.open(path, std::ios::binary);
    if (!file.stream_) return SystemError(path, "cannot open");
    if (absl::Status status = file.ReadHeader(); !status.ok()) return status;
    return file;
  }

  const Header& header() const { return header_; }

  absl::StatusOr<std::vector<std::byte>> ReadElements(int64_t element_bytes) {
    const std::streampos begin = stream_.tellg();
    stream_.seekg(0, std::ios::end);
    const int64_t got_bytes = stream_.tellg() - begin;
    stream_.seekg(begin);
    const auto count = client::ElementCount(header_.shape);
    // Divided rather than multiplied, so that no shape can overflow.
    if (!stream_ || !count || got_bytes % element_bytes != 0 ||
        got_bytes / element_bytes != *count) {
      return Malformed(
          path_,
          absl::StrCat("elements of ", element_bytes, " bytes for shape [",
                       absl::StrJoin(header_.shape, ", "), "]"),
          absl::StrCat(got_bytes, " bytes of them"));
    }
    std::vector<std::byte> bytes;
    try {
      bytes.resize(static_cast<size_t>(got_bytes));
    } catch (const std::bad_alloc&) {
      return NoMemoryFor(path_, got_bytes);
    }
    stream_.read(reinterpret_cast<char*>(bytes.data()), got_bytes);
    if (!stream_) return SystemError(path_, "cannot read");
    return bytes;
  }

 private:
  absl::Status ReadHeader() {
    char fixed[8];
    stream_.read(fixed, sizeof(fixed));
    if (!stream_ || absl::string_view(fixed, kMagic.size()) != kMagic) {
      return Malformed(path_, "a .npy file", "no such magic at its start");
    }
    const int version = static_cast<unsigned char>(fixed[6]);
    if (version < 1 || version > 3) {
      return Malformed(path_, "format version 1, 2 or 3",
                       absl::StrCat(version));
    }
    unsigned char length[4] = {};
    stream_.read(reinterpret_cast<char*>(length), version == 1 ? 2 : 4);
    const size_t header_bytes = length[0] | size_t{length[1]} << 8 |
                                size_t{length[2]} << 16 |
                                size_t{length[3]} << 24;
    if (!stream_ || header_bytes > kMaxHeaderBytes) {
      return Malformed(path_, "a header of at most 65536 bytes",
                       absl::StrCat(header_bytes));
    }
    std::string text(header_bytes, '\0');
    stream_.read(text.data(), static_cast<std::streamsize>(header_bytes));
    if (!stream_) return Malformed(path_, "a whole header", "the file's end");
    HeaderParser parser(text);
    auto header = parser.Parse();
    if (!header) {
      return Malformed(path_, "a header with descr, fortran_order and shape",
                       text.substr(0, 80));
    }
    if (parser.fortran_order()) {
      return Malformed(path_, "C order (np.ascontiguousarray)",
                       "Fortran order");
    }
    header_ = *std::move(header);
    return absl::OkStatus();
  }

  std::string path_;
  std::ifstream stream_;
  Header header_;
};

}  // namespace

absl::Status NoMemoryFor(const std::string& path, int64_t size_bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(
      path, ": there is not enough memory for its ", size_bytes, " bytes"));
}

absl::StatusOr<NpyTensor> ReadNpy(const std::string& path) {
  auto file = NpyFile::Open(path);
  if (!file.ok()) return file.status();
  const auto dtype = TypeOf(file->header().descr);
  if (!dtype) {
    return Malformed(path,
                     "little-endian float32 ('<f4'), float16 ('<f2'), bfloat16 "
                     "('<V2') or bool ('|b1')",
                     absl::StrCat("'", file->header().descr, "'"));
  }
  auto bytes = file->ReadElements(client::SizeOf(*dtype));
  if (!bytes.ok()) return bytes.status();
  return NpyTensor{*dtype, file->header().shape, *std::move(bytes)};
}

absl::StatusOr<NpyDoubles> ReadNpyAsDouble(const std::string& path) {
  auto file = NpyFile::Open(path);
  if (!file.ok()) return file.status();
  const std::string& descr = file->header().descr;
  const auto dtype = TypeOf(descr);
  const bool wide = descr == "<f8";
  if (!wide && (!dtype || *dtype == client::DataType::kBool)) {
    return Malformed(path,
                     "little-endian float64 ('<f8'), float32 ('<f4'), float16 "
                     "('<f2') or bfloat16 ('<V2')",
                     absl::StrCat("'", descr, "'"));
  }
  const auto bytes = file->ReadElements(wide ? int64_t{sizeof(double)}
                                             : client::SizeOf(*dtype));
  if (!bytes.ok()) return bytes.status();
  NpyDoubles doubles{.shape = file->header().shape, .values = {}};
  try {
    if (wide) {
      doubles.values.resize(bytes->size() / sizeof(double));
      if (!bytes->empty()) {
        std::memcpy(doubles.values.data(), bytes->data(), bytes->size());
      }
    } else {
      const std::vector<float> floats = ToFloats(*dtype, *bytes);
      doubles.values.assign(floats.begin(), floats.end());
    }
  } catch (const std::bad_alloc&) {
    return NoMemoryFor(path, static_cast<int64_t>(bytes->size()));
  }
  return doubles;
}

absl::Status WriteNpy(const std::string& path, client::DataType dtype,
                      const std::vector<int64_t>& shape,
                      std::span<const std::byte> bytes) {
  const auto count = client::ElementCount(shape);
  const auto element_bytes = static_cast<uint64_t>(client::SizeOf(dtype));
  if (!count || static_cast<uint64_t>(*count) != bytes.size() / element_bytes) {
    return absl::InternalError(
        absl::StrCat(path, ": shape [", absl::StrJoin(shape, ", "), "] for ",
                     bytes.size() / element_bytes, " elements"));
  }
  std::string text = absl::StrCat(
      "{'descr': '", DescrOf(dtype), "', 'fortran_order': False, 'shape': (",
      absl::StrJoin(shape, ", "), shape.size() == 1 ? ",), }" : "), }");
  const size_t prefix_bytes = kMagic.size() + 4;
  const size_t unpadded_bytes = prefix_bytes + text.size() + 1;
  text.append((kAlignment - unpadded_bytes % kAlignment) % kAlignment, ' ');
  text.push_back('\n');

  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  if (!stream) return SystemError(path, "cannot write");
  stream << kMagic << '\x01' << '\x00' << static_cast<char>(text.size() & 0xff)
         << static_cast<char>(text.size() >> 8) << text;
  stream.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  stream.close();
  // What was written stays: removing it could remove a device or a pipe.
  if (!stream) return SystemError(path, "cannot write");
  return absl::OkStatus();
}

}  // namespace attnd::attnctl
