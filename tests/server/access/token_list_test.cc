#include "server/access/token_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace attnd::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// SHA-256 of "abc" and of "" (FIPS 180-4).
constexpr char kHashOfAbc[] =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kHashOfNothing[] =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

// The hash of some other token.
std::string OtherHash(int number) {
  return absl::StrCat(absl::Hex(number, absl::kZeroPad16),
                      std::string(48, '7'));
}

TEST(TokenListTest, FindsTheOwnerOfAToken) {
  const auto list = TokenList::Parse(absl::StrCat(
      "# who may call\n\nroot ", OtherHash(1), " admin\n  alice\t ", kHashOfAbc,
      "  user  \r\n", "alice ", OtherHash(2), " user"));
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(list->size(), 3U);
  const TokenOwner* const owner = list->Find("abc");
  ASSERT_NE(owner, nullptr);
  EXPECT_EQ(owner->name, "alice");
  EXPECT_FALSE(owner->is_admin);
}

TEST(TokenListTest, FindsNobodyForAWrongToken) {
  const auto list =
      TokenList::Parse(absl::StrCat("alice ", kHashOfAbc, " admin"));
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_TRUE(list->Find("abc")->is_admin);
  for (const std::string token :
       {"", "ab", "abcd", "Abc", " abc", kHashOfAbc}) {
    EXPECT_EQ(list->Find(token), nullptr) << token;
  }
}

TEST(TokenListTest, TheHashOfNothingLetsNobodyIn) {
  const auto list =
      TokenList::Parse(absl::StrCat("nobody ", kHashOfNothing, " admin"));
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(list->Find(""), nullptr);
}

TEST(TokenListTest, HashesMayHaveCapitalLetters) {
  const auto list = TokenList::Parse(
      absl::StrCat("alice ", absl::AsciiStrToUpper(kHashOfAbc), " user"));
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_NE(list->Find("abc"), nullptr);
}

TEST(TokenListTest, ErrorsNameTheLineAndTheWordButShowNeither) {
  const struct {
    std::string line;
    std::string error;
  } cases[] = {
      {"secret", "line 2: expected three words, got 1"},
      {absl::StrCat("a ", kHashOfAbc, " user secret"), "three words, got 4"},
      {absl::StrCat("secret! ", kHashOfAbc, " user"), "line 2: NAME: expected"},
      {absl::StrCat(std::string(65, 'x'), " ", kHashOfAbc, " user"), "NAME: "},
      {"alice secret user", "line 2: SHA256: expected"},
      {absl::StrCat("alice ", kHashOfAbc, "0 user"), "SHA256: expected"},
      {absl::StrCat("alice g", std::string(kHashOfAbc).substr(1), " user"),
       "SHA256: expected"},
      {absl::StrCat("alice ", kHashOfAbc, " secret"),
       "line 2: ROLE: expected user or admin"},
      {absl::StrCat("alice ", kHashOfAbc, " User"), "ROLE: expected"},
      {absl::StrCat("bob ", OtherHash(1), " user"),
       "line 2: SHA256: an earlier line has the same one"},
  };
  for (const auto& [line, error] : cases) {
    const auto list =
        TokenList::Parse(absl::StrCat("x ", OtherHash(1), " user\n", line));
    ASSERT_FALSE(list.ok()) << line;
    EXPECT_EQ(list.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(list.status().message()),
                AllOf(HasSubstr(error), Not(HasSubstr("secret"))));
  }
}

TEST(TokenListTest, AnEmptyFileIsAnError) {
  for (const std::string text : {"", "\n\n", "# nobody\n"}) {
    EXPECT_FALSE(TokenList::Parse(text).ok()) << text;
  }
}

TEST(TokenListTest, HoldsUpTo1024Tokens) {
  std::string text;
  for (int i = 0; i < 1024; ++i) {
    absl::StrAppend(&text, "x ", OtherHash(i), " user\n");
  }
  EXPECT_TRUE(TokenList::Parse(text).ok());
  absl::StrAppend(&text, "x ", OtherHash(1024), " user\n");
  EXPECT_THAT(std::string(TokenList::Parse(text).status().message()),
              HasSubstr("line 1025: expected at most 1024 tokens"));
}

TEST(BearerTokenTest, IsWhatFollowsTheScheme) {
  EXPECT_EQ(BearerToken("Bearer abc"), "abc");
  EXPECT_EQ(BearerToken("bearer  abc "), "abc");
  EXPECT_EQ(BearerToken("BEARER abc"), "abc");
  EXPECT_EQ(BearerToken("Bearer a b"), "a b");
  EXPECT_EQ(BearerToken(absl::StrCat("Bearer ", std::string(4096, 'x'))),
            std::string(4096, 'x'));
}

TEST(BearerTokenTest, IsEmptyForAnotherForm) {
  for (const std::string value :
       {"", "abc", "Bearer", "Bearer ", "Bearerabc", "Basic abc"}) {
    EXPECT_EQ(BearerToken(value), "") << value;
  }
  EXPECT_EQ(BearerToken(absl::StrCat("Bearer ", std::string(4097, 'x'))), "");
}

}  // namespace
}  // namespace attnd::server
