// The guided tour: one digit from its pixels to the gradient that changes the model.

import { language, words } from "./words.js";

const STEPS = [
  {
    section: "draw", page: "lessons/06_vit_in_numbers",
    en: ["Pixels", "A test image of a 7 lies on the pad: 28 × 28 brightnesses from 0 to 1. The model never sees a stroke, only these 784 numbers. Clear the pad and draw your own whenever you like; everything below follows."],
    zh: ["像素", "画板上是一张 7 的测试图像：28 × 28 个从 0 到 1 的亮度。模型看不到笔画，只看到这 784 个数。你可以随时清空画板自己画，下面的一切都会随之更新。"],
  },
  {
    section: "see", page: "lessons/02_embedding",
    en: ["Patches become tokens", "The image is cut into patches, and one matrix turns the pixels of each patch into a token, a vector. The rows of the map are the tokens. Dark patches give equal rows: nothing distinguishes them yet."],
    zh: ["图像块变成 token", "图像被切成图像块，同一个矩阵把每块的像素变成一个 token，即一个向量。图中的每一行是一个 token。全黑的块给出相同的行：此时还没有什么能区分它们。"],
  },
  {
    section: "positions", other: "windows", page: "lessons/05_order",
    en: ["Where each patch is", "Attention reads a set. A ViT therefore adds a learned vector to each position, and neighbors have learned similar ones. A Swin adds a bias of the offset within each window instead."],
    zh: ["每一块在哪里", "注意力读取的是一个集合。因此 ViT 给每个位置加上一个学到的向量，相邻位置学到的向量相似。Swin 则在每个窗口内加上由偏移决定的偏置。"],
  },
  {
    section: "attention", page: "lessons/03_self_attention",
    en: ["One patch looks around", "A patch in the middle is chosen. Its query is compared with every key; softmax turns the scores into weights, which sum to 1. The lines show to whom they go in the first block."],
    zh: ["一个图像块环顾四周", "已选中中间的一块。它的查询与每个键比较，softmax 把分数变成总和为 1 的权重。连线显示第一个块中权重的去向。"],
  },
  {
    section: "attention", page: "lessons/04_many_heads",
    en: ["Many heads, many blocks", "Each head has its own queries and keys, so each looks for something else. Now you see what the head of the model reads in the last block. Press any of the small maps."],
    zh: ["许多头，许多块", "每个头有自己的查询和键，因此寻找不同的东西。现在显示的是分类头在最后一个块中读取的内容。可以按任意一个小图。"],
  },
  {
    section: "classes", page: "lessons/06_vit_in_numbers",
    en: ["The answer and its loss", "A linear layer makes ten logits, and softmax makes them probabilities. The loss is minus the logarithm of the true class's probability: near 0 for a sure and right answer, large for a sure and wrong one."],
    zh: ["答案及其损失", "一个线性层给出十个 logit，softmax 把它们变成概率。损失是真实类别概率的负对数：答对且有把握时接近 0，答错且有把握时很大。"],
  },
  {
    section: "backward", page: "lessons/09_backpropagation",
    en: ["Back through every part", "Each part hands the gradient of its output on to its input, in reverse order; the bars show how large it is. At the end stand the pixels: which of them, brightened, would make the model say another digit? Move the slider and see."],
    zh: ["反向经过每个部分", "每个部分按相反的顺序把输出的梯度传给输入，条形显示其大小。终点是像素：哪些像素变亮，会让模型读成别的数字？移动滑块看看。"],
  },
  {
    section: "training", page: "lessons/09_backpropagation",
    en: ["Learn from it", "The same pass gave a gradient for every parameter. Choose the true label and train one step: the loss of this drawing usually falls, and you see which parameters moved. Undo takes it back. After that, leave parts out below (lesson 10)."],
    zh: ["从中学习", "同一次反向传播也给出了每个参数的梯度。选择真实标签，训练一步：这幅画的损失通常会下降，你还能看到哪些参数动了。“撤销”可以恢复。之后可以在下面去掉一些部分（第 10 课）。"],
  },
];

export class Tour {
  // act(number) prepares what step number (from 0) shows; link(anchor, page) makes a link to a page
  constructor(act, link) {
    [this.act, this.link, this.number] = [act, link, -1];
    this.box = document.getElementById("tour");
    document.getElementById("tour-start").addEventListener("click", () => this.go(0));
    document.getElementById("tour-next").addEventListener("click", () => this.number === STEPS.length - 1 ? this.end() : this.go(this.number + 1));
    document.getElementById("tour-back").addEventListener("click", () => this.go(this.number - 1));
    document.getElementById("tour-end").addEventListener("click", () => this.end());
    this.box.addEventListener("keydown", event => { if (event.key === "Escape") this.end(); });
  }

  async go(number) {
    this.number = number;
    document.body.classList.add("touring");
    this.box.hidden = false;
    this.say();
    document.getElementById("tour-title").focus({ preventScroll: true });
    await this.act(number);
    for (const each of document.querySelectorAll(".toured")) each.classList.remove("toured");
    const step = STEPS[number];
    const found = [step.section, step.other].map(id => id && document.getElementById(id)).find(each => each && !each.hidden);
    if (!found) return;
    found.classList.add("toured");
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    found.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
  }

  say() {
    if (this.number < 0) return;
    const step = STEPS[this.number];
    const [title, text] = step[language];
    document.getElementById("tour-title").textContent = words().tourStep(this.number + 1, title);
    document.getElementById("tour-text").textContent = text;
    this.link(document.getElementById("tour-link"), step.page, words().lesson);
    document.getElementById("tour-back").disabled = this.number === 0;
  }

  end() {
    this.number = -1;
    this.box.hidden = true;
    document.body.classList.remove("touring");
    for (const each of document.querySelectorAll(".toured")) each.classList.remove("toured");
    document.getElementById("tour-start").focus();
  }
}
