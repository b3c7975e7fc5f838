// Holds the vocabulary of base/ against the contract.
#include "server/codec/options_codec.h"

#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <set>
#include <string>

#include "base/attention_options.h"
#include "base/types.h"
#include "tests/server/case_messages.h"
#include "tests/support/attention_case.h"

namespace attnd::server {
namespace {

using testing::CaseShape;
using testing::RandomCase;

// `prefix` is that of the contract's names. The contract alone has a value 0
// that stands for the default.
template <typename Enum>
void ExpectSameValues(const google::protobuf::EnumDescriptor& contract,
                      const std::string& prefix) {
  for (const auto& [value, name] : kNamedValues<Enum>) {
    if (static_cast<int>(value) == 0) continue;
    const auto* const there =
        contract.FindValueByNumber(static_cast<int>(value));
    ASSERT_NE(there, nullptr) << name;
    EXPECT_EQ(there->name(), prefix + name);
  }
  for (int i = 0; i < contract.value_count(); ++i) {
    const int number = contract.value(i)->number();
    if (number == 0) continue;
    EXPECT_STRNE(NameOf(static_cast<Enum>(number)), "?")
        << contract.value(i)->name();
  }
}

TEST(VocabularyTest, HasTheNumbersAndNamesOfTheContract) {
  ExpectSameValues<DataType>(*v1::DataType_descriptor(), "DATA_TYPE_");
  ExpectSameValues<Layout>(*v1::Layout_descriptor(), "LAYOUT_");
  ExpectSameValues<Causal>(*v1::Causal_descriptor(), "CAUSAL_");
  ExpectSameValues<Precision>(*v1::Precision_descriptor(), "PRECISION_");
  ExpectSameValues<Transport>(*v1::Transport_descriptor(), "TRANSPORT_");
}

TEST(OptionTableTest, HasEveryOptionOfTheContractThatShapesScores) {
  std::set<std::string> table;
  ForEachOption([&](const char* name, const auto&...) {
    EXPECT_TRUE(table.insert(name).second) << name;
  });
  std::set<std::string> contract;
  const auto& message = *v1::AttentionOptions::descriptor();
  for (int i = 0; i < message.field_count(); ++i) {
    contract.insert(message.field(i)->name());
  }
  // What a call answers, and where.
  for (const char* name :
       {"return_lse", "output_dtype", "output_region", "lse_region"}) {
    EXPECT_EQ(contract.erase(name), 1U) << name;
  }
  EXPECT_EQ(table, contract);
}

TEST(OptionTableTest, HelpIsASentenceWithoutAnEnd) {
  ForEachOption(
      [](const char* name, auto, const std::string& help, const auto&...) {
        EXPECT_FALSE(help.empty()) << name;
        EXPECT_NE(help.back(), '.') << name;
      });
}

TEST(OptionsCodecTest, DecodesWhateverTheTextFormatSays) {
  constexpr uint64_t kSeed = 20261130;
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 300; ++i) {
    const CaseShape shape = RandomCase(rng, 40);
    const auto decoded = DecodeOptions(OptionsOf(shape));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    CaseShape again = shape;
    again.options = decoded->options;
    again.outputs = decoded->outputs;
    EXPECT_EQ(again.ToString(), shape.ToString()) << "seed " << kSeed;
  }
}

TEST(OptionsCodecTest, ListsTheValuesThatAnEnumMayHave) {
  v1::AttentionOptions options;
  options.set_precision(static_cast<v1::Precision>(50));
  EXPECT_EQ(std::string(DecodeOptions(options).status().message()),
            "options.precision: expected PRECISION_AUTO, PRECISION_F32 or "
            "PRECISION_BF16, got unknown value 50");
  options.clear_precision();
  options.set_causal(static_cast<v1::Causal>(9));
  EXPECT_EQ(std::string(DecodeOptions(options).status().message()),
            "options.causal: expected CAUSAL_TOP_LEFT or CAUSAL_BOTTOM_RIGHT, "
            "got unknown value 9");
}

}  // namespace
}  // namespace attnd::server
