#include "client/attnctl/npy.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/attnctl/elements.h"
#include "tests/support/numbers.h"

namespace attnd::attnctl {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

class NpyTest : public testing::Test {
 public:
  // Writes a file of the format version `version`.
  std::string WriteFile(const std::string& header, const std::string& elements,
                        char version = 1) {
    std::string bytes = absl::StrCat("\x93NUMPY", std::string(1, version),
                                     std::string(1, '\0'));
    const size_t size = header.size();
    bytes += static_cast<char>(size & 0xff);
    bytes += static_cast<char>(size >> 8 & 0xff);
    if (version != 1) bytes += std::string(2, '\0');
    return WriteBytes(bytes + header + elements);
  }

  std::string WriteBytes(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
    return path_;
  }

  std::string ReadBytes() {
    std::ifstream stream(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  std::string path_ = absl::StrCat(
      testing::TempDir(), "npy_test_",
      testing::UnitTest::GetInstance()->current_test_info()->name(), ".npy");
};

// A pipe in this process, whose ends have paths.
class Pipe {
 public:
  Pipe() { EXPECT_EQ(pipe2(fds_, O_CLOEXEC), 0); }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  ~Pipe() {
    close(fds_[0]);
    CloseWriter();
  }

  int reader_fd() const { return fds_[0]; }
  int writer_fd() const { return fds_[1]; }
  std::string reader() const { return absl::StrCat("/dev/fd/", fds_[0]); }
  std::string writer() const { return absl::StrCat("/dev/fd/", fds_[1]); }

  void Write(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t put = write(fds_[1], bytes.data(), bytes.size());
      if (put <= 0) break;
      bytes.remove_prefix(static_cast<size_t>(put));
    }
    EXPECT_TRUE(bytes.empty());
  }

  std::string ReadAll() const {
    std::string all;
    char block[4096];
    ssize_t got = 0;
    while ((got = read(fds_[0], block, sizeof(block))) > 0) {
      all.append(block, static_cast<size_t>(got));
    }
    return all;
  }

  void CloseWriter() const {
    if (fds_[1] >= 0) close(std::exchange(fds_[1], -1));
  }

 private:
  mutable int fds_[2] = {-1, -1};
};

absl::Status WriteFloats(const std::string& path,
                         const std::vector<int64_t>& shape,
                         const std::vector<float>& values) {
  return WriteNpy(path, client::DataType::kF32, shape,
                  std::as_bytes(std::span(values)));
}

constexpr char kTwoByThree[] =
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";

TEST_F(NpyTest, ReadsWhatItWrote) {
  const std::vector<std::vector<int64_t>> shapes = {
      {}, {6}, {2, 3}, {1, 2, 1, 3}, {0, 4}};
  for (const std::vector<int64_t>& shape : shapes) {
    const size_t count = shape.empty() ? 1 : shape[0] == 0 ? 0 : 6;
    std::vector<float> values = {0,
                                 -1.5f,
                                 2,
                                 std::numeric_limits<float>::infinity(),
                                 std::numeric_limits<float>::denorm_min(),
                                 5};
    values.resize(count);
    ASSERT_TRUE(WriteFloats(path_, shape, values).ok());
    const auto array = ReadNpy(path_);
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_EQ(array->data.type(), client::DataType::kF32);
    EXPECT_EQ(array->shape, shape);
    EXPECT_EQ(ToFloats(array->data.type(), array->data.bytes()), values);
  }
}

TEST_F(NpyTest, ReadsEveryTypeThatItWrites) {
  using client::DataType;
  const std::pair<DataType, const char*> types[] = {{DataType::kF32, "'<f4'"},
                                                    {DataType::kF16, "'<f2'"},
                                                    {DataType::kBF16, "'<V2'"},
                                                    {DataType::kBool, "'|b1'"}};
  for (const auto& [dtype, descr] : types) {
    const std::vector<std::byte> bytes(
        static_cast<size_t>(3 * client::SizeOf(dtype)), std::byte{1});
    ASSERT_TRUE(WriteNpy(path_, dtype, {3}, bytes).ok());
    const auto array = ReadNpy(path_);
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_EQ(array->data.type(), dtype);
    EXPECT_THAT(array->data.bytes(), ElementsAreArray(bytes));
    EXPECT_THAT(ReadBytes(), HasSubstr(descr));
  }
  // NumPy writes opaque bytes without a byte order.
  EXPECT_EQ(ReadNpy(WriteFile("{'descr': '|V2', 'fortran_order': False, "
                              "'shape': (1,), }",
                              "ab"))
                ->data.type(),
            DataType::kBF16);
}

TEST_F(NpyTest, ReadsHalvesAsDoubles) {
  const std::string header = "', 'fortran_order': False, 'shape': (2,), }";
  const std::string halves("\x00\x3e\x01\x00", 4);
  EXPECT_THAT(
      ReadNpyAsDouble(WriteFile("{'descr': '<f2" + header, halves))->values,
      ElementsAre(1.5, 0x1p-24));
  const std::string bf16("\xc0\x3f\x80\xff", 4);
  EXPECT_THAT(
      ReadNpyAsDouble(WriteFile("{'descr': '<V2" + header, bf16))->values,
      ElementsAre(1.5, -std::numeric_limits<double>::infinity()));
  EXPECT_FALSE(
      ReadNpyAsDouble(WriteFile("{'descr': '|b1" + header, "ab")).ok());
}

TEST_F(NpyTest, WritesHeadersThatNumPyAligns) {
  ASSERT_TRUE(WriteFloats(path_, {1}, std::vector<float>{1}).ok());
  const std::string bytes = ReadBytes();
  EXPECT_EQ(bytes.size(), 128u + 4u);
  EXPECT_EQ(bytes[127], '\n');
  EXPECT_THAT(bytes, HasSubstr("'shape': (1,), }"));
}

TEST_F(NpyTest, ReadsEveryFormatVersion) {
  for (const char version : {'\x01', '\x02', '\x03'}) {
    const auto array =
        ReadNpy(WriteFile(kTwoByThree, std::string(24, '\0'), version));
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_THAT(array->shape, ElementsAre(2, 3));
  }
}

TEST_F(NpyTest, ReadsKeysInAnyOrder) {
  const auto array = ReadNpy(WriteFile(
      "{\"shape\": (1,), 'fortran_order':False,'descr':'<f4'}", "abcd"));
  EXPECT_TRUE(array.ok()) << array.status();
}

TEST_F(NpyTest, ReadsDoublesOnlyAsDoubles) {
  const double value = 0.1;
  std::string bytes(reinterpret_cast<const char*>(&value), sizeof(value));
  WriteFile("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes);
  const auto array = ReadNpyAsDouble(path_);
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_THAT(array->values, ElementsAre(0.1));
  EXPECT_THAT(ReadNpy(path_).status().message(),
              AllOf(HasSubstr("'<f8'"), HasSubstr("--dtype=")));

  ASSERT_TRUE(WriteFloats(path_, {1}, std::vector<float>{0.5f}).ok());
  EXPECT_THAT(ReadNpyAsDouble(path_)->values, ElementsAre(0.5));
}

// 0.1 lies between two bfloat16 numbers. The second number lies just above the
// middle of two bfloat16 numbers.
TEST_F(NpyTest, RoundsDoublesOnceToWhatIsAskedFor) {
  const std::vector<double> doubles = {0.1, 1 + 0x1p-8 + 0x1p-40};
  const std::string bytes(reinterpret_cast<const char*>(doubles.data()), 16);
  WriteFile("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", bytes);
  for (const bool only_float64 : {false, true}) {
    const auto array = ReadNpy(
        path_, {.to = client::DataType::kBF16, .only_float64 = only_float64});
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_EQ(array->data.type(), client::DataType::kBF16);
    EXPECT_THAT(ToFloats(array->data.type(), array->data.bytes()),
                ElementsAre(0x1.9ap-4F, 1 + 0x1p-7F));
  }
  ASSERT_TRUE(WriteFloats(path_, {1}, {0.1F}).ok());
  EXPECT_EQ(ReadNpy(path_, {.to = client::DataType::kF16})->data.type(),
            client::DataType::kF16);
  EXPECT_EQ(ReadNpy(path_, {.to = client::DataType::kF16, .only_float64 = true})
                ->data.type(),
            client::DataType::kF32);
  ASSERT_TRUE(
      WriteNpy(path_, client::DataType::kBool, {1}, {{std::byte{1}}}).ok());
  EXPECT_EQ(ReadNpy(path_, {.to = client::DataType::kF16})->data.type(),
            client::DataType::kBool);
}

TEST_F(NpyTest, SaysWhatToDoAboutOtherTypes) {
  for (const char* descr : {"<i4", "<i8", "|u1", "|i1", "<u8", "<f16", "<c8",
                            ">f4", ">f8", "<U3", "|O", "<M8[s]", ""}) {
    WriteFile(absl::StrCat("{'descr': '", descr,
                           "', 'fortran_order': False, 'shape': (1,), }"),
              std::string(16, '\0'));
    for (const Rounding& rounding : {Rounding(), {client::DataType::kF32}}) {
      EXPECT_THAT(ReadNpy(path_, rounding).status().message(),
                  AllOf(HasSubstr(absl::StrCat("'", descr, "'")),
                        HasSubstr("array.astype('<f4')"),
                        HasSubstr("array.astype(bool)")))
          << descr;
    }
    EXPECT_THAT(ReadNpyAsDouble(path_).status().message(),
                HasSubstr("array.astype('<f8')"))
        << descr;
  }
}

// NumPy reads all of these headers as two by three float32. NumPy 2 writes only
// the first form.
TEST_F(NpyTest, ReadsHeadersThatOthersWrote) {
  for (const char* header :
       {kTwoByThree,
        // NumPy on Python 2 wrote extents as long integers.
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }   \n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': ( 2L , 3L ,), }\n",
        "{u'descr': u'<f4', u'fortran_order': False, u'shape': (2, 3)}",
        // Other writers use other spaces and quotes.
        "\t{ 'descr' :\n\"<f4\",'fortran_order':False,\n'shape':(2,3)} \n\n",
        // The type has other names.
        "{'descr': '=f4', 'fortran_order': False, 'shape': (2, 3), }",
        "{'descr': '|f4', 'fortran_order': False, 'shape': (2, 3), }",
        "{'descr': 'f4', 'fortran_order': False, 'shape': (2, 3), }",
        "{'descr': 'f', 'fortran_order': False, 'shape': (2, 3), }",
        "{'descr': 'float32', 'fortran_order': False, 'shape': (2, 3), }"}) {
    const auto array = ReadNpy(WriteFile(header, std::string(24, '\0')));
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_EQ(array->data.type(), client::DataType::kF32);
    EXPECT_THAT(array->shape, ElementsAre(2, 3));
  }
  const auto array = ReadNpy(
      WriteFile("{'descr': '<f4', 'fortran_order': False, 'shape': (6L,), }\n",
                std::string(24, '\0')));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_THAT(array->shape, ElementsAre(6));
}

// The elements of a pipe come slowly and in pieces, and a pipe has no size.
TEST_F(NpyTest, ReadsPipes) {
  const std::vector<float> values(300000, 1.5f);
  ASSERT_TRUE(WriteFloats(path_, {300000}, values).ok());
  const std::string file = ReadBytes();
  for (const size_t piece : {size_t{7919}, file.size()}) {
    const Pipe pipe;
    std::thread writer([&] {
      for (size_t at = 0; at < file.size(); at += piece) {
        pipe.Write(file.substr(at, piece));
      }
      pipe.CloseWriter();
    });
    const auto array = ReadNpy(pipe.reader());
    writer.join();
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_EQ(ToFloats(array->data.type(), array->data.bytes()), values);
  }
}

// Another process that shares the pipe can have set O_NONBLOCK.
TEST_F(NpyTest, WaitsForPipesThatDoNotWait) {
  ASSERT_TRUE(WriteFloats(path_, {300000}, std::vector<float>(300000)).ok());
  const std::string file = ReadBytes();
  const Pipe in;
  ASSERT_EQ(fcntl(in.reader_fd(), F_SETFL, O_NONBLOCK), 0);
  std::thread writer([&] {
    in.Write(file);
    in.CloseWriter();
  });
  const auto array = ReadNpy(in.reader());
  writer.join();
  ASSERT_TRUE(array.ok()) << array.status();

  const Pipe out;
  ASSERT_EQ(fcntl(out.writer_fd(), F_SETFL, O_NONBLOCK), 0);
  std::string got;
  std::thread reader([&] { got = out.ReadAll(); });
  const absl::Status written =
      WriteFloats(out.writer(), {300000}, std::vector<float>(300000));
  out.CloseWriter();
  reader.join();
  EXPECT_TRUE(written.ok()) << written;
  EXPECT_EQ(got, file);
}

TEST_F(NpyTest, SaysWhatIsWrongWithAPipe) {
  const std::string header = absl::StrCat(
      std::string("\x93NUMPY\x01\0", 8),
      std::string{static_cast<char>(sizeof(kTwoByThree) - 1), '\0'},
      kTwoByThree);
  const std::string whole = header + std::string(24, '\0');
  const std::pair<std::string, const char*> cases[] = {
      {"", "got no bytes; a pipe can be read only once"},
      {"\x93NUM", "got a file that does not begin with \\x93NUMPY"},
      {header.substr(0, 9),
       "expected a complete header, got the end of the file"},
      {header.substr(0, 30),
       "expected a complete header, got the end of the file"},
      {header, "shape [2, 3]), got only 0"},
      {whole.substr(0, whole.size() - 1), "got only 23"},
      {whole + "x", "got more bytes after them"},
      {whole + whole, "got more bytes after them"}};
  for (const auto& [bytes, expected] : cases) {
    const Pipe pipe;
    pipe.Write(bytes);
    pipe.CloseWriter();
    const absl::Status status = ReadNpy(pipe.reader()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(testing::StartsWith(pipe.reader()), HasSubstr(expected)));
  }
}

// The error must come before any memory is reserved, and without waiting for
// elements.
TEST_F(NpyTest, RefusesMoreThanThisMachineHolds) {
  const Pipe pipe;  // this pipe stays open
  const std::string header =
      "{'descr': '<f4', 'fortran_order': False, 'shape': (1125899906842624,)}";
  pipe.Write(absl::StrCat(std::string("\x93NUMPY\x01\0", 8),
                          std::string{static_cast<char>(header.size()), '\0'},
                          header));
  const absl::Status status = ReadNpy(pipe.reader()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("for its 4503599627370496 bytes"));
}

// A file can be inherited with a position. The bytes before this position must
// not be read or overwritten.
TEST_F(NpyTest, StartsWhereADescriptorStands) {
  ASSERT_TRUE(WriteFloats(path_, {1}, {2.5f}).ok());
  const std::string file = ReadBytes();
  WriteBytes("before");
  const int fd = open(path_.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(lseek(fd, 0, SEEK_END), 6);
  const std::string name = absl::StrCat("/dev/fd/", fd);
  EXPECT_TRUE(WriteFloats(name, {1}, {2.5f}).ok());
  EXPECT_EQ(ReadBytes(), "before" + file);
  ASSERT_EQ(lseek(fd, 6, SEEK_SET), 6);
  const auto array = ReadNpy(name);
  close(fd);
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_THAT(array->shape, ElementsAre(1));
}

// Random bytes are either refused or read as an array of the size that its
// shape says.
TEST_F(NpyTest, TakesWhateverItIsGiven) {
  std::mt19937_64 rng(kSeed);
  int accepted = 0;
  for (const client::DataType dtype :
       {client::DataType::kF32, client::DataType::kBF16}) {
    const std::vector<std::byte> elements(
        static_cast<size_t>(6 * client::SizeOf(dtype)));
    ASSERT_TRUE(WriteNpy(path_, dtype, {2, 3}, elements).ok());
    const std::string good = ReadBytes();
    for (int i = 0; i < 3000; ++i) {
      std::string bytes = good;
      for (uint64_t n = 1 + rng() % 3; n > 0 && !bytes.empty(); --n) {
        const size_t at = rng() % bytes.size();
        switch (rng() % 4) {
          case 0:
            bytes[at] = static_cast<char>(rng());
            break;
          case 1:
            bytes[at] = "0123456789L(),'{}: <f8V"[rng() % 23];
            break;
          case 2:
            bytes.erase(at, 1 + rng() % 3);
            break;
          default:
            bytes.resize(rng() % (good.size() + 8));
            break;
        }
      }
      const Pipe pipe;
      pipe.Write(bytes);
      pipe.CloseWriter();
      const auto array = ReadNpy(pipe.reader());
      const std::string which = absl::StrCat("seed ", kSeed, " case ", i);
      if (!array.ok()) {
        ASSERT_THAT(std::string(array.status().message()),
                    testing::StartsWith(pipe.reader()))
            << which;
        continue;
      }
      ASSERT_EQ(static_cast<int64_t>(array->data.bytes().size()),
                *client::ElementCount(array->shape) *
                    client::SizeOf(array->data.type()))
          << which;
      ++accepted;
    }
  }
  EXPECT_GT(accepted, 100);
}

TEST_F(NpyTest, SaysWhichFileIsMissing) {
  const auto array = ReadNpy("/nowhere/q.npy");
  EXPECT_EQ(array.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(array.status().message(), HasSubstr("/nowhere/q.npy"));
  EXPECT_FALSE(ReadNpy(testing::TempDir()).ok());
}

TEST_F(NpyTest, RefusesToWriteWhereItCannot) {
  EXPECT_FALSE(WriteFloats("/nowhere/o.npy", {1}, std::vector<float>{1}).ok());
  // On a full device, the error occurs when the bytes are flushed, and the
  // device must still exist afterwards.
  if (std::filesystem::exists("/dev/full")) {
    EXPECT_THAT(WriteFloats("/dev/full", {1}, std::vector<float>{1}).message(),
                HasSubstr("/dev/full: cannot write: No space left on device"));
    EXPECT_TRUE(std::filesystem::exists("/dev/full"));
  }
  EXPECT_FALSE(WriteFloats(path_, {2}, std::vector<float>{1}).ok());
}

TEST_F(NpyTest, RefusesMalformedFiles) {
  const std::string six(24, '\0');
  const auto header = [](const std::string& descr, const std::string& order,
                         const std::string& shape) {
    return absl::StrCat("{'descr': ", descr, ", 'fortran_order': ", order,
                        ", 'shape': ", shape, ", }");
  };
  const std::vector<std::string> headers = {
      "",
      "{",
      "{}",
      "[]",
      "{'descr': '<f4'}",
      header("'>f4'", "False", "(2, 3)"),
      header("'>f2'", "False", "(2, 3)"),
      header("'<f2'", "False", "(2, 3)"),
      header("'<u2'", "False", "(3, 4)"),
      header("'|V4'", "False", "(2, 3)"),
      header("'|u1'", "False", "(24,)"),
      header("'<i4'", "False", "(2, 3)"),
      header("'|O'", "False", "(2, 3)"),
      header("[('a', '<f4')]", "False", "(2, 3)"),
      header("'<f4'", "True", "(2, 3)"),
      header("'<f4'", "0", "(2, 3)"),
      header("'<f4'", "False", "(6)"),
      header("'<f4'", "False", "(2, 3"),
      header("'<f4'", "False", "(-2, -3)"),
      header("'<f4'", "False", "(2, x)"),
      header("'<f4'", "False", "(2, 4)"),
      header("'<f4'", "False", "(9223372036854775807, 2)"),
      header("'<f4'", "False", "(4611686018427387904, 4)"),
      header("'<f4'", "False", "(99999999999999999999,)"),
      header("'<f4'", "False", "(2, 3)") + " trailing",
      "{'descr': '<f4', 'descr': '<f4', 'shape': (2, 3)}",
      "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'x': 1}"};
  for (const std::string& text : headers) {
    const auto array = ReadNpy(WriteFile(text, six));
    EXPECT_EQ(array.status().code(), absl::StatusCode::kInvalidArgument)
        << text;
    EXPECT_THAT(array.status().message(), HasSubstr(path_)) << text;
  }
  for (const std::string& bytes :
       {std::string(), std::string("\x93NUMPY"),
        std::string("PK\x03\x04 a zip of arrays"),
        std::string("\x93NUMPY\x04\x00\x10\x00", 10),
        std::string("\x93NUMPY\x01\x01\x10\x00", 10),
        std::string("\x93NUMPY\x01\x00\xff\xff{", 11),
        std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff", 12)}) {
    EXPECT_EQ(ReadNpy(WriteBytes(bytes)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bytes;
  }
}

TEST_F(NpyTest, RefusesTooFewAndTooManyElements) {
  for (const size_t size : {0u, 23u, 25u, 28u}) {
    EXPECT_EQ(ReadNpy(WriteFile(kTwoByThree, std::string(size, '\0')))
                  .status()
                  .code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
}

}  // namespace
}  // namespace attnd::attnctl
