// The kernels as Metal's compiler gets them, text and all, on a CPU. Their positions are the last arguments, which the launch
// adds (shim.cpp).
#include <metal_stdlib>

// Called by the launch, so that the linker takes this file.
void shim::add_metal() {}

namespace f32 {
#define VALUE float
constexpr const char* TYPE_NAME = "f32_metal";
#include "metal_kernels.inc"
}  // namespace f32
#undef VALUE
namespace bf16 {
#define VALUE bfloat
constexpr const char* TYPE_NAME = "bf16_metal";
#include "metal_kernels.inc"
}  // namespace bf16
#undef VALUE
namespace f16 {
#define VALUE half
constexpr const char* TYPE_NAME = "f16_metal";
#include "metal_kernels.inc"
}  // namespace f16
