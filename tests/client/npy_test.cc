#include "client/attnctl/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/attnctl/elements.h"

namespace attnd::attnctl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class NpyTest : public testing::Test {
 public:
  // A file of format version `version` with `header` and `elements` as given.
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

  std::string path_ = absl::StrCat(
      testing::TempDir(), "npy_test_",
      testing::UnitTest::GetInstance()->current_test_info()->name(), ".npy");
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
    EXPECT_EQ(array->dtype, client::DataType::kF32);
    EXPECT_EQ(array->shape, shape);
    EXPECT_EQ(ToFloats(array->dtype, array->bytes), values);
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
    EXPECT_EQ(array->dtype, dtype);
    EXPECT_EQ(array->bytes, bytes);
    std::ifstream stream(path_, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(stream)), {});
    EXPECT_THAT(text, HasSubstr(descr));
  }
  // NumPy gives opaque bytes no order.
  EXPECT_EQ(ReadNpy(WriteFile("{'descr': '|V2', 'fortran_order': False, "
                              "'shape': (1,), }",
                              "ab"))
                ->dtype,
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
  std::ifstream stream(path_, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(stream)), {});
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
  EXPECT_THAT(ReadNpy(path_).status().message(), HasSubstr("'<f8'"));

  ASSERT_TRUE(WriteFloats(path_, {1}, std::vector<float>{0.5f}).ok());
  EXPECT_THAT(ReadNpyAsDouble(path_)->values, ElementsAre(0.5));
}

TEST_F(NpyTest, SaysWhichFileIsMissing) {
  const auto array = ReadNpy("/nowhere/q.npy");
  EXPECT_EQ(array.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(array.status().message(), HasSubstr("/nowhere/q.npy"));
  EXPECT_FALSE(ReadNpy(testing::TempDir()).ok());
}

TEST_F(NpyTest, RefusesToWriteWhereItCannot) {
  EXPECT_FALSE(WriteFloats("/nowhere/o.npy", {1}, std::vector<float>{1}).ok());
  // A full device: the error comes when the bytes are flushed, and the device
  // is still there.
  if (std::filesystem::exists("/dev/full")) {
    EXPECT_FALSE(WriteFloats("/dev/full", {1}, std::vector<float>{1}).ok());
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
