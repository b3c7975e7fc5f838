#include <algorithm>

#include "core/isa.h"
#include "core/kernels/amx_bf16.h"
#include "core/kernels/microkernels.h"
#include "core/kernels/targets.h"
#include "hwy/highway.h"

namespace attnd {
namespace {

// How well this processor runs one set.
struct Support {
  Isa isa;
  bool available;
  bool preferred;  // whether it is faster than narrower sets
};

// Returns the support of all sets, in the order of the table.
std::vector<Support> AllSupport() {
  // The compiler may use the static target everywhere, so the processor has it.
  // Highway 1.0.3 says that it does not on an ARM without instructions for AES.
  const int64_t targets =
      (hwy::SupportedTargets() | HWY_STATIC_TARGET) & HWY_TARGETS;
  std::vector<Support> all;
  const auto has = [&](Isa isa) {
    return all[static_cast<size_t>(isa)].available;
  };
#define ATTND_VECTOR_SUPPORT(ARG, ISA, NAME, TARGET, ...) \
  all.push_back({Isa::ISA, (targets & (TARGET)) != 0, true});
#define ATTND_BF16_SUPPORT(ISA, NAME, BASE, AVAILABLE, PREFERRED, ...) \
  all.push_back({Isa::ISA, has(Isa::BASE) && AVAILABLE(), PREFERRED()});
  ATTND_VECTOR_ISAS(ATTND_VECTOR_SUPPORT, )
  ATTND_BF16_ISAS(ATTND_BF16_SUPPORT)
#undef ATTND_VECTOR_SUPPORT
#undef ATTND_BF16_SUPPORT
  std::erase_if(all, [](const Support& set) { return !set.available; });
  std::reverse(all.begin(), all.end());
  return all;
}

}  // namespace

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  for (const Support& set : AllSupport()) isas.push_back(set.isa);
  return isas;
}

Isa FastestIsa() {
  const std::vector<Support> all = AllSupport();
  return std::find_if(all.begin(), all.end(),
                      [](const Support& set) { return set.preferred; })
      ->isa;
}

}  // namespace attnd
